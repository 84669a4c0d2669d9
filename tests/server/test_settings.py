from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import Settings, check_environment


def test_environment_sets_a_limit_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAID_MAX_IMAGES", "7")
    monkeypatch.setenv("LAID_PORT", "9000")

    settings = Settings(checkpoint=Path("runs/student"), port=9001)

    assert (settings.max_images, settings.port, settings.model) == (7, 9001, "student")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings(checkpoint=Path()).max_images = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "bad",
    [
        {"max_images": 0},
        {"max_image_pixels": 10**9},
        {"port": 0},
        {"upstream": "ftp://x"},
        {"upstream": ""},
        {"max_imagse": 1},
    ],
)
def test_bad_values_and_unknown_names_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        Settings(checkpoint=Path(), **bad)  # type: ignore[arg-type]


def test_an_unknown_variable_names_the_nearest_setting() -> None:
    check_environment({"LAID_MAX_IMAGES": "1", "PATH": ""})
    with pytest.raises(ValueError, match="LAID_MAX_IMAGE_PIXEL: no such setting; did you mean LAID_MAX_IMAGE_PIXELS"):
        check_environment({"LAID_MAX_IMAGE_PIXEL": "1"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "gateway.example"])
def test_other_machines_need_keys(host: str) -> None:
    with pytest.raises(ValidationError, match="laid-keys new NAME and set LAID_KEYS_FILE"):
        Settings(checkpoint=Path(), host=host)

    assert Settings(checkpoint=Path(), host=host, keys_file=Path("keys.toml")).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    assert Settings(checkpoint=Path(), host=host).keys_file is None


def test_engines_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAID_UPSTREAM", "http://10.0.0.1:8000, http://10.0.0.2:8000/path")

    urls = Settings(checkpoint=Path()).upstream

    assert [str(url) for url in urls] == ["http://10.0.0.1:8000/", "http://10.0.0.2:8000/path"]


@pytest.mark.parametrize(
    ("upstream", "words"),
    [
        (["http://a", "http://b", "http://a"], "several different ones"),
        ("http://me:secret@a", "nothing but scheme, host, port and path"),
        ("http://a/?x=1", "nothing but scheme, host, port and path"),
    ],
)
def test_engines_must_differ_and_be_plain(upstream: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings(checkpoint=Path(), upstream=upstream)  # type: ignore[arg-type]


SECRET = "a secret of the gateways"


@pytest.fixture
def secrets_folder(tmp_path: Path) -> Path:
    (tmp_path / "LAID_IMAGE_SECRET").write_text(SECRET + "\n")
    (tmp_path / "keys.toml").write_text("[keys]\n")
    return tmp_path


def test_secrets_come_from_files_named_as_the_variables(secrets_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAID_SECRETS_FOLDER", str(secrets_folder))

    settings = Settings(checkpoint=Path())

    assert settings.image_secret is not None
    assert settings.image_secret.get_secret_value() == SECRET
    assert SECRET not in repr(settings)


def test_a_variable_wins_over_a_file(secrets_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAID_IMAGE_SECRET", "the environment's own")

    settings = Settings(checkpoint=Path(), secrets_folder=secrets_folder)

    assert settings.image_secret is not None
    assert settings.image_secret.get_secret_value() == "the environment's own"


def test_a_file_that_is_no_setting_and_a_folder_that_is_none_are_refused(secrets_folder: Path) -> None:
    with pytest.raises(ValidationError, match=r"(?s)secrets_folder.*not point to a directory"):
        Settings(checkpoint=Path(), secrets_folder=secrets_folder / "none")

    (secrets_folder / "LAID_IMAGE_SECERT").write_text(SECRET)
    with pytest.raises(
        ValidationError, match=r"(?s)LAID_IMAGE_SECERT: no such setting; did you mean LAID_IMAGE_SECRE"
    ) as error:
        Settings(checkpoint=Path(), secrets_folder=secrets_folder)
    assert SECRET not in str(error.value)
