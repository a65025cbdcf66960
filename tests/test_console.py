import pytest

from thinwire.console import print_line, printable, warn


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable("a\x1b[2Jb\nc\x9b\u202ed é 文") == "a\\x1b[2Jb\\nc\\x9b\\u202ed é 文"


@pytest.mark.parametrize("shown", [print_line, warn])
def test_a_sentence_is_shown_as_it_is(shown: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(shown)
    name = f"my [bold]run[/bold] :dog: {'long ' * 50}\x1b[31m"
    shown(name)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith(name.replace("\x1b", "\\x1b") + "\n") and said.err.count("\n") == 1
