import pytest

from sparsetrain.track.density_picture import MOST, DensityPicture


def test_the_picture_has_a_line_for_each_masked_layer_and_a_cell_for_each_step():
    pytest.importorskip("PIL", reason="pillow draws it")
    picture = DensityPicture()
    assert picture.add(10, {"a": 0.5, "b": 1.0, "c": 0.1})
    assert not picture.add(20, {"a": 0.5, "b": 1.0, "c": 0.1})
    small = picture.draw()
    for step in range(30, 3000, 10):
        picture.add(step, {"a": 0.4, "b": 1.0, "c": 0.2})
    large = picture.draw()
    assert len(picture.steps) == MOST[0] and small.height == large.height and small.width < large.width < 1200
    pixels = {large.getpixel((large.width - 66, y)) for y in (24, 40)}
    assert len(pixels) == 2
