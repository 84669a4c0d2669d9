from distill.evaluate.curve import CurvePoint
from distill.evaluate.report import Evaluation
from distill.evaluate.table import format_table
from distill.evaluate.window import Window, WindowFactor


def window(threshold: float, *, censored: bool) -> Window:
    return Window(
        threshold=threshold,
        kind="relative" if threshold == 0.85 else "absolute",
        images=88.2,
        images_low=80.1,
        images_high=95.0,
        tokens=560.1,
        tokens_low=511.0,
        tokens_high=600.4,
        censored=censored,
    )


EVALUATION = Evaluation(
    task="miniature/open",
    measured="local",
    seed=1,
    items_per_size=100,
    points=(
        CurvePoint(images=1, prompt_tokens=41.0, items=100, correct=100, compliant=100),
        CurvePoint(images=150, prompt_tokens=935.0, items=100, correct=60, compliant=97),
    ),
    windows=(window(0.5, censored=True), window(0.6, censored=False), window(0.85, censored=False)),
)

EXPECTED = """\
miniature/open, 100 items a size
images  prompt tokens  accuracy  95 % interval  compliant
─────────────────────────────────────────────────────────
     1             41   100.0 %   96.3 - 100.0    100.0 %
   150            935    60.0 %    50.2 - 69.1     97.0 %

  threshold  effective window  95 % interval  in tokens  95 % interval
──────────────────────────────────────────────────────────────────────
       50 %       ≥ 88 images        80 - 95      ≥ 560      511 - 600
     60 % *         88 images        80 - 95        560      511 - 600
85 % of own         88 images        80 - 95        560      511 - 600
* the one a gateway shows
≥ never below the threshold at the sizes measured: a lower bound"""


def test_the_table_of_a_measurement() -> None:
    assert format_table(EVALUATION, []) == EXPECTED


def test_factors_come_last() -> None:
    factors = [
        WindowFactor(threshold=0.6, kind="absolute", factor=3.254, low=2.5, high=4.0, lower_bound=False),
        WindowFactor(threshold=0.7, kind="absolute", factor=3.4, low=2.5, high=None, lower_bound=True),
        WindowFactor(threshold=0.85, kind="relative", factor=None, low=None, high=None, lower_bound=False),
    ]
    assert format_table(EVALUATION, factors).endswith(
        "\n\n"
        "  threshold  window factor    95 % interval\n"
        "───────────────────────────────────────────\n"
        "       60 %           3.25      2.50 - 4.00\n"
        "       70 %         ≥ 3.40  2.50 - no bound\n"
        "85 % of own           none                -\n"
        "none: the base's window is 0, or has no end at the sizes measured"
    )
