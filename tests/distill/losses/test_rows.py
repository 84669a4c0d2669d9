import torch

from distill.losses.rows import Places, drawn_from, rows_where


def test_rows_keep_their_order_and_mark_the_padding() -> None:
    rows = rows_where(torch.tensor([[True, False, True, True], [False, True, False, False]]))
    assert rows.index_BR[0].tolist() == [0, 2, 3]
    assert rows.index_BR[1, 0] == 1
    assert rows.valid_BR.tolist() == [[True, True, True], [True, False, False]]


def test_chunks_cover_every_row_once_and_see_no_key_in_vain() -> None:
    rows = rows_where(torch.arange(9) < torch.tensor([[9], [4]]))

    chunks = list(rows.causal_chunks(12))

    assert torch.equal(torch.cat([chunk.index_BR for chunk, _ in chunks], dim=1), rows.index_BR)
    assert torch.equal(torch.cat([chunk.valid_BR for chunk, _ in chunks], dim=1), rows.valid_BR)
    # 3 rows of 3 keys, 2 of 5, then one at a time: two rows of 7 are more than 12 values.
    assert [(chunk.index_BR.shape[1], num_keys) for chunk, num_keys in chunks] == [
        (3, 3),
        (2, 5),
        (1, 6),
        (1, 7),
        (1, 8),
        (1, 9),
    ]


def test_drawn_rows_are_of_the_mask_and_evenly_so() -> None:
    mask_BT = torch.arange(9) >= torch.tensor([[3], [7]])

    drawn = torch.stack([drawn_from(mask_BT, 4, [f"a/{seed}", f"b/{seed}"]) for seed in range(600)])

    assert (drawn.sum(dim=2) == torch.tensor([4, 2])).all()
    assert not drawn[:, ~mask_BT].any()
    # 4 of 6: each in two thirds of the draws, give or take five standard deviations.
    torch.testing.assert_close(drawn[:, 0, 3:].float().mean(dim=0), torch.full((6,), 2 / 3), rtol=0, atol=0.1)
    assert torch.equal(drawn_from(mask_BT, 4, ["a/5", "b/5"]), drawn[5])


def test_distances_by_hand() -> None:
    # Text, an image of two by two tokens, text, a second image, text.
    positions = [
        [0, 1, 1, 1, 1, 3, 4, 4, 4, 4, 6],
        [0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6],
        [0, 1, 2, 1, 2, 3, 4, 5, 4, 5, 6],
    ]
    places = Places(
        position_ids_3BT=torch.tensor(positions)[:, None],
        images_before_BT=torch.tensor([[0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]]),
    )
    last_row = torch.tensor([[10]])
    assert places.distance("token", last_row, 11)[0, 0].tolist() == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert places.distance("image", last_row, 11)[0, 0].tolist() == [2, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert places.distance("position", last_row, 11)[0, 0].tolist() == [6, 5, 5, 5, 5, 3, 2, 2, 2, 2, 0]
