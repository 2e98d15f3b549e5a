import pytest

from unimem.results.select import Select, in_words


@pytest.mark.parametrize(
    ("wanted", "overrides", "found"),
    [
        ({"method": "unimix"}, {"method": "unimix", "data": "urn"}, True),
        ({"method": "unimix"}, {"method": "rmt"}, False),
        ({"injection_layer": "*"}, {"injection_layer": "3"}, True),
        ({"injection_layer": "*"}, {"method": "vanilla"}, False),
        ({"memory.size": 512, "method": "rmt"}, {"memory.size": "512"}, False),
        ({"memory.size": 512}, {"memory.size": "512.0"}, True),
        ({"trainer.learning_rate": 1e-3}, {"trainer.learning_rate": "1e-3"}, True),
        ({"memory.injection.layers": [3, 5]}, {"memory.injection.layers": "[3,5]"}, True),
        ({"memory.reading": "[similarity,position]"}, {"memory.reading": "[similarity, position]"},
         True),
        ({"memory.positions": "true"}, {"memory.positions": "'true'"}, True),
        ({"memory.grad_topk": True}, {"memory.grad_topk": "true"}, True),
        ({"memory.window": None}, {"memory.window": "null"}, True),
    ],
)  # fmt: skip
def test_settings_are_meant_by_their_overrides(wanted, overrides, found):
    assert Select.read(wanted).matches(overrides) is found


def test_text_says_the_same_as_a_mapping():
    text = Select.read("method=unimix memory.size=*")
    assert text == Select.read({"method": "unimix", "memory.size": "*"})
    assert str(text) == "unimix any size"


@pytest.mark.parametrize("given", [{}, "", "unimix", ["method=unimix"], None, 3])
def test_what_selects_nothing_is_refused(given):
    with pytest.raises(ValueError, match="write the overrides meant, as in {method: unimix"):
        Select.read(given)


def test_names_of_budgets_need_no_dimension():
    assert in_words({"method": "rmt", "memory.topk": "4", "data.length": "8"}) == (
        "rmt topk=4 data.length=8"
    )
    assert in_words({"memory.positions": "'true'"}) == "positions=true"
