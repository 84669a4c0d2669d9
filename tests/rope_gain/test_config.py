import json

import pytest

from rope_gain import RopeGainConfig


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(
            RopeGainConfig(granularity="layer", target="query", position="static"),
            {"query_a": (1, 1)},
            id="layer-query-static",
        ),
        pytest.param(
            RopeGainConfig(granularity="layer_frequency", target="query", position="log"),
            {"query_a": (1, 64), "query_b": (1, 64)},
            id="frequency-query-log",
        ),
        pytest.param(
            RopeGainConfig(granularity="layer_head_frequency", target="query_key", position="static"),
            {"query_a": (28, 64), "key_a": (4, 64)},
            id="head-query_key-static",
        ),
        pytest.param(
            RopeGainConfig(granularity="layer_head_frequency", target="query_key", position="log"),
            {"query_a": (28, 64), "query_b": (28, 64), "key_a": (4, 64), "key_b": (4, 64)},
            id="head-query_key-log",
        ),
    ],
)
def test_gain_shapes_follow_the_configuration(config, expected):
    assert config.gain_shapes(num_heads=28, num_key_value_heads=4, head_dim=128) == expected


def test_the_block_survives_json():
    config = RopeGainConfig(granularity="layer", position="static", reference_length=128, layers=(3, 1))

    assert RopeGainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_block_has_the_documented_keys():
    assert RopeGainConfig().to_dict() == {
        "format": 1,
        "granularity": "layer_frequency",
        "target": "query",
        "position": "log",
        "reference_length": 256.0,
        "layers": None,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"granularty": "layer"}, "rope_gain.granularty: unknown key, the nearest known one is 'granularity'"),
        ({"granularity": "head"}, "rope_gain.granularity: got 'head', expected one of 'layer', 'layer_freq"),
        ({"target": None}, "rope_gain.target: got None, expected one of 'query', 'query_key'"),
        ({"position": "linear"}, "rope_gain.position: got 'linear', expected one of 'static', 'log'"),
        ({"reference_length": 0}, "rope_gain.reference_length: got 0, expected a number above 0"),
        ({"reference_length": "256"}, "rope_gain.reference_length: got '256', expected a number above 0"),
        ({"reference_length": float("nan")}, "rope_gain.reference_length: got nan, expected a number above 0"),
        ({"layers": []}, r"rope_gain.layers: got \[\], expected null or a list"),
        ({"layers": [0, 0]}, r"rope_gain.layers: got \[0, 0\], expected null or a list of different"),
        ({"layers": [-1]}, r"rope_gain.layers: got \[-1\], expected null or a list"),
        ({"layers": [True]}, r"rope_gain.layers: got \[True\], expected null or a list"),
        ({"format": 2}, "rope_gain.format: got 2, expected 1"),
    ],
)
def test_wrong_values_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        RopeGainConfig.from_dict(values)


def test_a_layer_that_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match="got layer 2, expected at most 1: the model has 2 decoder layers"):
        RopeGainConfig(layers=(0, 2)).gained_layers(2)
