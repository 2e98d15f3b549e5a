import pytest

from unimem.memory.unread import unread


@pytest.mark.parametrize(
    ("lengths", "segment_length", "said"),
    [
        ([512, 512], 512, ["never read: no text is longer", "512 tokens", "segment_length=64"]),
        ([3], 8, ["never read: no text", "3 tokens", "memory.segment_length=1,"]),
        ([8, 8, 9], 8, ["never read in 67 % of the documents (2 of 3)", "segment_length=1,"]),
        ([100] * 3 + [5000], 512, ["75 %", "(3 of 4)", "memory.segment_length=8,"]),
    ],
)  # fmt: skip
def test_short_documents_are_named_with_a_remedy(lengths, segment_length, said):
    line = unread(lengths, segment_length, "text")
    assert line is not None
    for words in said:
        assert words.replace(" %", "%") in line


@pytest.mark.parametrize("lengths", [[9], [9, 8], [513, 3]])
def test_documents_of_which_half_are_longer_are_none_to_tell_of(lengths):
    assert unread(lengths, 8, "text") is None
