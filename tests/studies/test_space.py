import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from unimem.config import ConfigError
from unimem.studies.search.space import read_space


@pytest.mark.parametrize(
    ("argument", "distribution"),
    [
        ("a=4,8,16", CategoricalDistribution(("4", "8", "16"))),
        ("a=choice(x,y)", CategoricalDistribution(("x", "y"))),
        ("a=[x,y],z,z", CategoricalDistribution(("[x,y]", "z"))),
        ('a="x y",null', CategoricalDistribution(('"x y"', "null"))),
        ("a=range(1,22)", IntDistribution(1, 21)),
        ("a=range(0,10,4)", IntDistribution(0, 8, step=4)),
        ("a=range(5,0,-2)", IntDistribution(1, 5, step=2)),
        ("a=tag(log,range(1,9))", IntDistribution(1, 8, log=True)),
        ("a=interval(128,1024)", IntDistribution(128, 1023)),
        ("a=interval(-3,2)", IntDistribution(-3, 1)),
        ("a=int(interval(1.5,9))", IntDistribution(1, 8)),
        ("a=tag(log,interval(16,4096))", IntDistribution(16, 4095, log=True)),
        ("a=interval(0.0,1)", FloatDistribution(0.0, 1.0)),
        ("a=float(interval(0,1))", FloatDistribution(0.0, 1.0)),
        ("a=tag(log,interval(1e-5,1e-3))", FloatDistribution(1e-5, 1e-3, log=True)),
    ],
)
def test_what_is_drawn_for_an_argument(argument, distribution):
    space = read_space([argument])
    assert space.parameters == {"a": distribution} and space.fixed == ()
    assert type(space.parameters["a"]) is type(distribution)


def test_a_subset_is_a_yes_or_no_for_each_layer():
    space = read_space(["+a=subset(1, 4)"])
    assert space.parameters == {
        f"+a[{n}]": CategoricalDistribution((False, True)) for n in (1, 2, 3)
    }
    drawn = {"+a[1]": True, "+a[2]": False, "+a[3]": True}
    assert space.overrides(drawn) == ["+a=[1,3]"]
    with pytest.raises(ConfigError, match=r"\+a=\[\]: a subset has at least one element"):
        space.overrides(dict.fromkeys(drawn, False))


def test_what_has_one_value_is_fixed_and_the_later_of_two_counts():
    arguments = ["b=[1,2]", "a=1,2", "c=subset(0,2)", "+d=3,4", "c=5", "b=range(0,2)", "e=subset"]
    space = read_space(arguments)
    assert space.fixed == ("c=5", "e=subset")
    assert list(space.parameters) == ["a", "+d", "b"]
    assert space.overrides({"a": "2", "+d": "3", "b": 1}) == ["a=2", "+d=3", "b=1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a search of 0 dimensions"),
        (["a=1", "b=[1,2]"], "a search of 0 dimensions"),
        (["a=subset(3,3)"], r"a=subset\(3,3\): write subset\(FIRST,LAST\)"),
        (["a=subset(0,x)"], r"write subset\(FIRST,LAST\)"),
        (["a=range(1,1)"], "no number is in it; the last one is left out"),
        (["a=range(0,1,0.25)"], r"range\(\) is of whole numbers"),
        (["a=interval(5,5)"], "the first end must be below the second"),
        (["a=interval(2.0,1.0)"], "the first end must be below the second"),
        (["a=tag(log,range(0,9))"], "log"),
        (["a=tag(log,choice(1,2))"], "the only tag is log"),
        (["a=tag(exp,interval(1,2))"], "the only tag is log"),
        (["a=shuffle(1,2)"], r"leave shuffle\(\) out"),
        (["a=glob(*)"], "name the values"),
        (["a==1"], "write name=value"),
        (["a=subset(0,1000000)"], "a subset of 1,000,000 numbers"),
        (["a=subset(0," + "9" * 5000 + ")"], "digits|characters|subset"),
        (["a=range(0,9,0)"], "a step that is not 0"),
        (["a=interval(0,1e400)"], "within 1e"),
        (["a=interval(nan,1)"], "the first end must be below the second"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ConfigError, match=message):
        read_space(arguments)


def test_a_range_is_not_listed():
    space = read_space(["a=range(0,1000000000000)", "b=range(9,-1000000000000,-3)"])
    assert space.parameters["a"] == IntDistribution(0, 10**12 - 1)
    assert space.parameters["b"] == IntDistribution(9 - 3 * ((10**12 + 8) // 3), 9, step=3)
