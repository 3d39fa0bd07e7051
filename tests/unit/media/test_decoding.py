import pytest

from segstream.errors import InvalidInputError, TooLargeError
from segstream.media.decoding import refusing_unreadable


def test_what_a_decoder_raises_names_the_field_and_the_form() -> None:
    told = "frame.data is truncated or corrupt PNG: bad chunk"
    error = SyntaxError("bad chunk")
    with (
        pytest.raises(InvalidInputError, match=told) as caught,
        refusing_unreadable("frame.data", "PNG"),
    ):
        raise error
    assert caught.value.field == "frame.data"
    assert caught.value.__cause__ is error


def test_an_error_of_our_own_passes_as_it_is() -> None:
    error = TooLargeError("text", field="other")
    with pytest.raises(TooLargeError) as caught, refusing_unreadable("frame.data", "PNG"):
        raise error
    assert caught.value is error
