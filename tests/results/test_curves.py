import struct

from unimem.results.curves import plot_by_position


def curve(*mean, width=0.1):
    low = [None if width is None else m - width for m in mean]
    high = [None if width is None else m + width for m in mean]
    return {"mean": list(mean), "low": low, "high": high}


def draw(path, edges, **values):
    given = {
        "title": "Loss",
        "edges": edges,
        "curves": {"on": curve(3.0, 2.0), "off": curve(3.0, 2.5)},
        "bounds": {"best": curve(1.0, 1.0)},
        "difference": ("on - off", curve(0.0, -0.5)),
    }
    plot_by_position(path, **(given | values))
    return path.read_bytes()


def test_draws_a_png_of_fixed_size(tmp_path):
    image = draw(tmp_path / "a.png", [0, 64, 128])
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", image[16:24]) == (2100, 1800)


def test_is_a_function_of_the_numbers(tmp_path):
    image = draw(tmp_path / "a.png", [0, 64, 128])
    assert draw(tmp_path / "b.png", [0, 64, 128]) == image
    other = {"on": curve(3.0, 2.1), "off": curve(3.0, 2.5)}
    assert draw(tmp_path / "c.png", [0, 64, 128], curves=other) != image
    assert draw(tmp_path / "d.png", [0, 32, 64]) != image


def test_one_document_has_no_band(tmp_path):
    without = {"on": curve(3.0, 2.0, width=None)}
    image = draw(tmp_path / "a.png", [0, 64, 128], curves=without)
    assert image != draw(tmp_path / "b.png", [0, 64, 128], curves={"on": curve(3.0, 2.0)})
