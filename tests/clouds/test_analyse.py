"""One picture to its result: every field, the same bytes twice, and one clear line for what is no picture."""

import io
import json
from datetime import date

import numpy as np
import pytest
from PIL import Image

from clouds import picture
from clouds.analyse import analyse_files, analyse_picture, result_json
from clouds.box import SWEDEN, Box
from clouds.errors import BadPicture, CloudsError

WINTER, SUMMER = date(2021, 2, 16), date(2021, 7, 1)


def encoded(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def half_clouded(height=120, width=80):
    """Sea with its western half under cloud and a black gap across the south."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = (14, 24, 48)
    pixels[:, : width // 2] = (236, 238, 240)
    pixels[-height // 4 :] = 0
    return pixels


def test_a_result_has_every_field_a_user_expects_in_order():
    analysis = analyse_picture(encoded(half_clouded()), day=SUMMER, box=SWEDEN)
    assert list(analysis.result) == [
        "day",
        "box",
        "crs",
        "layers",
        "service",
        "width",
        "height",
        "bytes",
        "sha256",
        "fetched_at",
        "provisional",
        "method",
        "method_version",
        "parameters",
        "snow_screen",
        "snow_risk",
        "pixels_total",
        "pixels_valid",
        "pixels_cloud",
        "valid_fraction",
        "cloud_fraction",
        "cloud_fraction_area",
        "thick_fraction",
        "by_quadrant",
        "warnings",
        "seconds",
    ]
    assert list(analysis.result["seconds"]) == ["fetch", "decode", "analyse", "encode"]
    expected = {
        "day": "2021-07-01",
        "box": [54.6985, 10.3525, 69.8203, 24.7862],
        "crs": "EPSG:4326",
        "width": 80,
        "height": 120,
        "method": "F",
        "snow_screen": False,
        "snow_risk": False,
        "pixels_total": 9600,
        "pixels_valid": 7200,
        "pixels_cloud": 3600,
        "valid_fraction": 0.75,
        "cloud_fraction": 0.5,
        "thick_fraction": 0.5,
        "by_quadrant": [1.0, 0.0, 1.0, 0.0],
        "warnings": [],
    }
    assert {name: analysis.result[name] for name in expected} == expected
    assert analysis.result["cloud_fraction_area"] == pytest.approx(0.5, abs=1e-6)
    assert len(analysis.result["sha256"]) == 64
    assert json.loads(result_json(analysis.result)) == analysis.result


def test_the_same_bytes_give_the_same_bytes():
    given = encoded(half_clouded(), "JPEG", quality=85)
    first, second = (analyse_picture(given, day=WINTER, box=SWEDEN, bands721=given) for _ in range(2))
    assert first.mask_png == second.mask_png
    assert first.overlay_jpg == second.overlay_jpg
    assert first.thumbnail_jpg == second.thumbnail_jpg
    assert {**first.result, "seconds": None} == {**second.result, "seconds": None}


def test_the_mask_is_a_palette_picture_of_0_1_and_2():
    analysis = analyse_picture(encoded(half_clouded()), day=None, box=None)
    with Image.open(io.BytesIO(analysis.mask_png)) as image:
        assert image.mode == "P"
        values = np.asarray(image)
    assert (values[:90, :40] == 1).all()
    assert (values[:90, 40:] == 0).all()
    assert (values[90:] == 2).all()
    assert (picture.read_mask(analysis.mask_png) == values).all()


def test_the_overlay_tints_cloud_greys_no_data_and_leaves_clear_as_it_is():
    analysis = analyse_picture(encoded(half_clouded(240, 160)), day=None, box=None, caption="")
    with Image.open(io.BytesIO(analysis.overlay_jpg)) as image:
        assert image.format == "JPEG"
        drawn = np.asarray(image).astype(int)
    red, green, blue = drawn[40, 40]
    assert red > green + 80
    assert red > blue + 80
    assert abs(drawn[40, 120] - (14, 24, 48)).max() < 12
    assert abs(np.ptp(drawn[225, 60])) < 25
    assert drawn[225, 60].max() > 30


def test_the_caption_names_day_and_fraction_and_covers_only_the_lower_edge():
    given = encoded(half_clouded(240, 160))
    plain = analyse_picture(given, day=None, box=None, caption="")
    captioned = analyse_picture(given, day=SUMMER, box=None)
    difference = np.abs(
        np.asarray(Image.open(io.BytesIO(plain.overlay_jpg))).astype(int)
        - np.asarray(Image.open(io.BytesIO(captioned.overlay_jpg)))
    )
    assert difference[:200].max() == 0
    assert difference[220:].max() > 50


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(1642, 1721, (305, 320)), (764, 1721, (142, 320)), (40, 30, (40, 30))]
)
def test_a_thumbnail_keeps_the_shape_and_never_grows(width, height, expected):
    small = picture.thumbnail_jpg(Image.new("RGB", (width, height), (10, 20, 30)))
    assert Image.open(io.BytesIO(small)).size == expected


# --- snow ------------------------------------------------------------------------------------------------------


def snow_scene():
    white = np.full((64, 64, 3), 236, np.uint8)
    bands = white.copy()
    bands[:, 32:] = (10, 200, 210)
    return encoded(white), encoded(bands)


def test_without_bands_721_a_northern_winter_is_at_risk_and_says_so():
    result = analyse_picture(snow_scene()[0], day=WINTER, box=SWEDEN).result
    assert result["snow_risk"] is True
    assert result["snow_screen"] is False
    assert result["cloud_fraction"] == 1
    assert result["warnings"] == ["snow and ice may be counted as cloud: no Bands 7-2-1 picture was given"]
    assert "snow_screen_threshold" not in result["parameters"]


def test_with_bands_721_snow_is_screened_and_the_risk_is_gone():
    true_colour, bands = snow_scene()
    result = analyse_picture(true_colour, day=WINTER, box=SWEDEN, bands721=bands).result
    assert result["snow_risk"] is False
    assert result["snow_screen"] is True
    assert result["cloud_fraction"] == 0.5
    assert result["warnings"] == []
    assert result["parameters"]["snow_screen_threshold"] == 0.5


@pytest.mark.parametrize(("rows", "risk"), [(3, False), (32, True)])
def test_bands_721_with_gaps_of_their_own_leave_the_risk(rows, risk):
    true_colour = encoded(np.full((64, 64, 3), 236, np.uint8))
    bands = np.full((64, 64, 3), 236, np.uint8)
    bands[:rows] = 0
    result = analyse_picture(true_colour, day=WINTER, box=SWEDEN, bands721=encoded(bands)).result
    assert result["snow_screen"] is True
    assert result["snow_risk"] is risk
    expected = ["snow and ice may be counted as cloud: Bands 7-2-1 has no data for 50 %"] if risk else []
    assert result["warnings"] == expected
    assert analyse_picture(true_colour, day=SUMMER, box=SWEDEN, bands721=encoded(bands)).result["snow_risk"] is False


def test_summer_and_the_tropics_are_not_at_risk_and_an_unknown_place_or_day_is_unknown():
    given = snow_scene()[0]
    assert analyse_picture(given, day=SUMMER, box=SWEDEN).result["snow_risk"] is False
    assert analyse_picture(given, day=WINTER, box=Box.parse("10,-58,20,-48")).result["snow_risk"] is False
    assert analyse_picture(given, day=None, box=SWEDEN).result["snow_risk"] is None
    assert analyse_picture(given, day=WINTER, box=None).result["snow_risk"] is None


def test_a_stricter_threshold_screens_less():
    true_colour, bands = snow_scene()
    strict = analyse_picture(true_colour, day=WINTER, box=SWEDEN, bands721=bands, snow_screen_threshold=0.95)
    assert strict.result["cloud_fraction"] == 1


@pytest.mark.parametrize("threshold", [-0.5, 1.0, float("nan")])
def test_an_impossible_threshold_is_refused(threshold):
    with pytest.raises(CloudsError, match="at least 0 and below 1"):
        analyse_picture(snow_scene()[0], day=None, box=None, snow_screen_threshold=threshold)


def test_bands_721_of_another_size_are_refused():
    with pytest.raises(BadPicture, match=r"is 32 x 64 and the true-colour one 64 x 64; they must be of the same box"):
        analyse_picture(snow_scene()[0], day=None, box=None, bands721=encoded(np.zeros((64, 32, 3), np.uint8)))


def test_a_broken_bands_721_picture_is_named():
    with pytest.raises(BadPicture, match="the Bands 7-2-1 picture is not"):
        analyse_picture(snow_scene()[0], day=None, box=None, bands721=b"no picture")


# --- coverage --------------------------------------------------------------------------------------------------


def test_all_black_is_a_result_with_no_fraction():
    result = analyse_picture(encoded(np.zeros((60, 90, 3), np.uint8), "JPEG"), day=SUMMER, box=SWEDEN).result
    assert result["valid_fraction"] == 0
    assert result["cloud_fraction"] is None
    assert result["cloud_fraction_area"] is None
    assert result["thick_fraction"] is None
    assert result["by_quadrant"] == [None] * 4
    assert result["warnings"] == ["nothing was observed: the picture is black throughout"]


def test_little_coverage_is_warned_of_and_never_rounded_up_to_half():
    pixels = np.full((1000, 100, 3), 60, np.uint8)
    pixels[499:] = 0
    assert analyse_picture(encoded(pixels), day=SUMMER, box=SWEDEN).result["warnings"] == [
        "only 49 % was observed: left out of means"
    ]


# --- formats and files -----------------------------------------------------------------------------------------


def test_grey_palette_and_transparent_pictures_are_read_as_colour():
    grey = np.full((40, 40), 200, np.uint8)
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("P"), Image.fromarray(grey).convert("RGBA")):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert analyse_picture(buffer.getvalue(), day=None, box=None).result["cloud_fraction"] == 1


def jpeg():
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    return encoded(noise, "JPEG", quality=85)


def png_without_its_end():
    return encoded(half_clouded())[:-12]


def for_print():
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"", "is empty"),
        (b"<?xml version='1.0'?><ServiceExceptionReport/>", "not a picture but text that begins"),
        (b'\n {"error": "no such layer"}', "not a picture but text that begins"),
        (b"\x00" * 100, "not a JPEG, PNG or TIFF picture"),
        (jpeg()[:300], "cannot be decoded whole"),
        (jpeg()[: len(jpeg()) * 6 // 10], "cannot be decoded whole"),
        (png_without_its_end(), "cannot be decoded whole"),
        (encoded(half_clouded(), "GIF"), "not a JPEG, PNG or TIFF picture"),
        (encoded(np.zeros((1, 8201, 3), np.uint8)), "8201 x 1; at most 8200"),
        (for_print(), "colour mode CMYK"),
    ],
    ids=["empty", "xml", "json", "zeros", "jpeg head", "jpeg 60 %", "png end", "gif", "too wide", "cmyk"],
)
def test_what_is_no_whole_picture_is_refused_with_one_line(given, says):
    with pytest.raises(BadPicture) as caught:
        analyse_picture(given, day=None, box=None)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_in_files_out(tmp_path):
    (tmp_path / "day.jpg").write_bytes(encoded(half_clouded(), "JPEG", quality=95))
    out = tmp_path / "deep" / "out"
    result = analyse_files(tmp_path / "day.jpg", None, out, day=SUMMER, box=SWEDEN)
    assert sorted(path.name for path in out.iterdir()) == ["mask.png", "overlay.jpg", "result.json"]
    assert json.loads((out / "result.json").read_text()) == result
    assert set(np.unique(np.asarray(Image.open(out / "mask.png")))) == {0, 1, 2}
    again = analyse_files(tmp_path / "day.jpg", tmp_path / "day.jpg", out)
    assert json.loads((out / "result.json").read_text()) == again
    assert again["snow_screen"] is True


def test_a_bad_file_writes_nothing_and_names_the_file(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(jpeg()[:500])
    out = tmp_path / "out"
    with pytest.raises(BadPicture, match=r"bad\.jpg: the picture cannot be decoded whole"):
        analyse_files(tmp_path / "bad.jpg", None, out)
    with pytest.raises(CloudsError, match=r"cannot read .*none\.jpg: No such file"):
        analyse_files(tmp_path / "none.jpg", None, out)
    with pytest.raises(CloudsError, match="Is a directory"):
        analyse_files(tmp_path, None, out)
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "day.png").write_bytes(encoded(half_clouded()))
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CloudsError, match=r"cannot write to .*taken"):
        analyse_files(tmp_path / "day.png", None, tmp_path / "taken")


@pytest.mark.parametrize("given", [b"", b"x", encoded(np.full((8, 8), 3, np.uint8)), encoded(half_clouded(8, 8))])
def test_what_is_no_mask_is_refused(given):
    with pytest.raises(BadPicture, match="the mask"):
        picture.read_mask(given)
