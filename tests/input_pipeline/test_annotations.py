"""Annotation files of seven formats, read by hand and by the parsers; rectangles against closed forms."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.layouts import annotations
from ringmoe_jax.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"

VOC = """<?xml version="1.0"?>
<annotation>
  <filename>other.jpg</filename>
  <object>
    <name>ship</name>
    <bndbox><xmin>3</xmin><ymin>1</ymin><xmax>6</xmax><ymax>2</ymax></bndbox>
    <part><name>mast</name><bndbox><xmin>1</xmin></bndbox></part>
  </object>
  <object>
    <name>Dam</name>
    <bndbox><xmin>5</xmin><ymin>5</ymin><xmax>4</xmax><ymax>9</ymax></bndbox>
  </object>
</annotation>"""

DIOR_R = """<annotation><object>
  <name>vehicle</name>
  <robndbox>
    <x_left_top>4</x_left_top><y_left_top>0</y_left_top>
    <x_right_top>8</x_right_top><y_right_top>4</y_right_top>
    <x_right_bottom>6</x_right_bottom><y_right_bottom>6</y_right_bottom>
    <x_left_bottom>2</x_left_bottom><y_left_bottom>2</y_left_bottom>
  </robndbox>
</object></annotation>"""

FAIR1M = """<annotation><source><filename>7.tif</filename></source><objects><object>
  <type>rectangle</type>
  <possibleresult><name>Boeing737</name><probability>1</probability></possibleresult>
  <points>
    <point>10.0,2.0</point><point>14.0,2.0</point><point>14.0,12.0</point><point>10.0,12.0</point><point>10.0,2.0</point>
  </points>
</object></objects></annotation>"""

HRSC = """<HRSC_Image><Img_FileName>100000001</Img_FileName><HRSC_Objects><HRSC_Object>
  <Class_ID>100000013</Class_ID>
  <box_xmin>1</box_xmin>
  <mbox_cx>50.5</mbox_cx><mbox_cy>20</mbox_cy><mbox_w>40</mbox_w><mbox_h>8</mbox_h><mbox_ang>-0.5</mbox_ang>
</HRSC_Object></HRSC_Objects></HRSC_Image>"""

DOTA = """imagesource:GoogleEarth
gsd:null
0 0 4 0 4 2 0 2 plane 0

10.0 10.0 10.0 13.0 11.0 13.0 11.0 10.0 small-vehicle 1
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def crops(**changes):
    """A COCO file: ids with gaps, folders in names, a crowd, a box without area, an image without objects."""

    def entry(image, kind, box, **more):
        return {"image_id": image, "category_id": kind, "bbox": box, **more}

    return {
        "images": [{"id": 5, "file_name": "a/one.png"}, {"id": 9, "file_name": "two.tif"}],
        "categories": [{"id": 30, "name": "field"}, {"id": 2, "name": "barn"}],
        "annotations": [
            entry(5, 30, [2, 4, 6, 8], iscrowd=0),
            entry(5, 2, [1, 1, 0, 3]),
            entry(5, 2, [0, 0, 9, 9], iscrowd=1),
        ],
    } | changes


def test_coco(tmp_path):
    found = annotations.coco(write(tmp_path / "boxes.json", crops()))
    assert found.names == ("barn", "field")
    np.testing.assert_array_equal(found.images["one"], [[1, 5, 8, 6, 8, 0], [0, 1, 2.5, 0, 3, 0]])
    assert found.images["two"].shape == (0, 6)
    assert found.left_out == {"were crowds": {"one": 1}}
    ours = annotations.coco(tmp_path / "boxes.json", ("field", "road", "barn"))
    assert ours.names == ("field", "road", "barn")
    assert ours.images["one"][:, 0].tolist() == [0, 2]


def test_voc_counts_pixels_from_one(tmp_path):
    path = write(tmp_path / "a.xml", VOC)
    found = annotations.voc([path])
    assert found.names == ("Dam", "ship")
    # xmin 3, xmax 6: the third to the sixth pixel, from 2 to 6; the second box has no extent and is kept
    np.testing.assert_array_equal(found.images["a"], [[1, 4, 1, 4, 2, 0], [0, 4, 6.5, 0, 5, 0]])
    ours = annotations.voc([path], ("ship", "dam"))
    assert ours.names == ("ship", "dam")  # case does not matter
    assert ours.images["a"][:, 0].tolist() == [0, 1]


def test_dota(tmp_path):
    files = [write(tmp_path / "P1.txt", DOTA), write(tmp_path / "P2.txt", "imagesource:GF\ngsd:0.5\n")]
    found = annotations.dota(files, ("small-vehicle", "plane"))
    np.testing.assert_allclose(
        found.images["P1"], [[1, 2, 1, 4, 2, 0], [0, 10.5, 11.5, 3, 1, -math.pi / 2]], atol=1e-12
    )
    assert found.images["P2"].shape == (0, 6)


def test_dior_r(tmp_path):
    found = annotations.dior_r([write(tmp_path / "1.xml", DIOR_R)])
    assert found.names == ("vehicle",)
    # the long side goes from (4, 0) to (8, 4): clockwise as displayed
    wanted = [[0, 5, 3, math.sqrt(32), math.sqrt(8), math.pi / 4]]
    np.testing.assert_allclose(found.images["1"], wanted, atol=1e-12)


def test_fair1m(tmp_path):
    found = annotations.fair1m([write(tmp_path / "7.xml", FAIR1M)], ("A220", "Boeing737"))
    np.testing.assert_allclose(found.images["7"], [[1, 12, 7, 10, 4, -math.pi / 2]], atol=1e-12)


def test_hrsc2016(tmp_path):
    found = annotations.hrsc2016([write(tmp_path / "100000001.xml", HRSC)])
    assert found.names == ("ship",)
    np.testing.assert_allclose(found.images["100000001"], [[0, 50.5, 20, 40, 8, -0.5]])


def test_motchallenge(tmp_path):
    rows = "1,7,1,1,4,2,1,1,0.5\n3,7,11,21,4,2,1,2,1\n3,8,1,1,2,2,0,1,1\n"
    path = write(tmp_path / "city" / "gt" / "gt.txt", rows)
    found = annotations.motchallenge([path], ("car", "ship"))
    np.testing.assert_array_equal(found.images["city"], [[0, 2, 1, 4, 2, 0, 7, 0], [1, 12, 21, 4, 2, 0, 7, 2]])
    assert found.left_out == {"were marked as not to be counted": {"city": 1}}
    short = annotations.motchallenge([write(tmp_path / "sea.txt", "2,1,1,1,4,2\n")], ("car",))
    np.testing.assert_array_equal(short.images["sea"], [[0, 2, 1, 4, 2, 0, 1, 1]])


@pytest.mark.parametrize(
    ("read", "name", "text", "message"),
    [
        ("coco", "b.json", "{", r"b\.json, line 1: .*wanted a COCO file"),
        ("coco", "b.json", {"images": []}, r"b\.json lacks 'categories': wanted images, categories"),
        ("coco", "b.json", crops(categories=[{"id": 30, "name": "field"}]), "annotation 1 has category_id = 2, which"),
        ("coco", "b.json", crops(images=[{"id": 9, "file_name": "a.png"}]), "annotation 0 has image_id = 5, which"),
        (
            "coco",
            "b.json",
            crops(images=[{"id": 5, "file_name": "a/p.png"}, {"id": 9, "file_name": "b/p.png"}]),
            "names 2 images, 1 without folder and ending",
        ),
        (
            "coco",
            "b.json",
            crops(annotations=[{"image_id": 5, "category_id": 2, "bbox": [1, 2, None, 4]}]),
            r"annotation 0 holds \[1, 2, None, 4\]: wanted \[left, top, width, height\]",
        ),
        ("voc", "a.xml", VOC.replace("</part>", ""), r"a\.xml, line 8: mismatched tag: wanted XML"),
        ("voc", "a.xml", VOC.replace("Dam", "Damm"), r'a\.xml, line 9: unknown class "Damm": did you mean "Dam"'),
        ("voc", "a.xml", VOC.replace("<ymax>9</ymax>", ""), r"a\.xml, line 9 has no <bndbox/ymax>"),
        ("voc", "a.xml", VOC.replace(">9<", ">nan<"), r"line 9 holds \['nan'\]: wanted a number in <bndbox/ymax>"),
        ("voc", "a.xml", HRSC, r"a\.xml begins with <HRSC_Image>, wanted <annotation>"),
        ("voc", "a.xml", DIOR_R, "line 1 has no <bndbox/xmin>"),
        ("dota", "a.txt", DOTA.replace(" plane 0", ""), r"a\.txt, line 3 has 8 words: wanted x1 y1"),
        ("dota", "a.txt", DOTA.replace("0 0 4 0", "0 0 4 x"), r"a\.txt, line 3 holds \['0', '0', '4', 'x'"),
        ("dota", "a.txt", DOTA.replace("plane", "plain"), r'line 3: unknown class "plain": did you mean "plane"'),
        ("motchallenge", "a.txt", "1,1,0,0,4", r"a\.txt, line 1 has 5 values"),
        ("motchallenge", "a.txt", "0,1,0,0,4,4", "line 1 has track 1 in frame 0: wanted whole numbers, frames from 1"),
        ("motchallenge", "a.txt", "1,1,0,0,4,4,1,1\n1,1,0,0,4,4,1,1", "line 2 has track 1 in frame 1: wanted once"),
        ("motchallenge", "a.txt", "1,1,0,0,4,4,1,4", "line 1 has class 4: wanted 1 to 3 for Dam, ship, plane"),
    ],
)
def test_errors_name_file_and_line(tmp_path, read, name, text, message):
    path, known = write(tmp_path / name, text), ("Dam", "ship", "plane")
    with pytest.raises(DataError, match=message):
        getattr(annotations, read)(*([path] if read == "coco" else [[path], known]))


def test_two_files_of_one_image(tmp_path):
    files = [write(tmp_path / folder / "a.txt", DOTA) for folder in "xy"]
    with pytest.raises(DataError, match="name the same image"):
        annotations.dota(files)


def corners(x, y, width, height, angle):
    """[4, 2] of a rectangle as `schema.BOX` describes it."""
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    return np.array([x, y]) + signs[:, :1] * width * along + signs[:, 1:] * height * across


SIDE = st.floats(0.5, 500)


@given(
    x=st.floats(-1e3, 1e4), y=st.floats(-1e3, 1e4), long=SIDE, short=SIDE, angle=st.floats(-4, 4), order=st.randoms()
)
@settings(deadline=None)
def test_rectangles_come_back(x, y, long, short, angle, order):
    """The corners of any rectangle, in any order, give it back; the long side first, the angle in its range."""
    points = corners(x, y, long, short, angle)
    order.shuffle(shuffled := list(range(4)))
    box = annotations.rectangle(points[shuffled])
    assert box[2] >= box[3] * (1 - 1e-8)
    assert -math.pi / 2 <= box[4] < math.pi / 2
    assert sorted(box[2:4]) == pytest.approx(sorted((long, short)), rel=1e-7)
    same = corners(*box)
    distance = np.hypot(*(points[:, None] - same).transpose(2, 0, 1))
    assert distance.min(1).max() < 1e-6 * max(long, short, 1e3)  # every corner is one of the other's


@given(points=st.lists(st.tuples(*[st.floats(-100, 100, width=16)] * 2), min_size=3, max_size=8))
@settings(deadline=None, max_examples=200)
def test_no_direction_gives_a_smaller_rectangle(points):
    x, y, width, height, angle = annotations.rectangle(points)
    away = np.array(points) - (x, y)
    along, across = away @ [math.cos(angle), math.sin(angle)], away @ [-math.sin(angle), math.cos(angle)]
    assert np.abs(along).max() <= width / 2 + 1e-6  # all points are inside
    assert np.abs(across).max() <= height / 2 + 1e-6
    for other in np.linspace(0, math.pi / 2, 91):
        area = np.ptp(away @ [math.cos(other), math.sin(other)]) * np.ptp(away @ [-math.sin(other), math.cos(other)])
        assert width * height <= area + 1e-6


def test_rectangles_without_area():
    assert annotations.rectangle([[3, 4]] * 4) == (3, 4, 0, 0, 0)
    assert annotations.rectangle([[0, 0], [3, 3], [1, 1]]) == pytest.approx((1.5, 1.5, math.sqrt(18), 0, math.pi / 4))


@given(x=st.integers(-5, 5), side=st.integers(1, 9), turns=st.permutations(range(4)))
def test_upright_squares_have_no_angle(x, side, turns):
    box = annotations.rectangle(np.array([[x, 0], [x + side, 0], [x + side, side], [x, side]])[list(turns)])
    assert box == (x + side / 2, side / 2, side, side, 0)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared folder of real test data is not on this machine")
def test_real_tree_crowns():
    found = annotations.voc(sorted((SHARED / "detection/neon_trees").glob("*.xml")))
    assert found.names == ("Alive", "Dead", "Tree")
    assert {name: len(rows) for name, rows in found.images.items()} == {
        "2019_YELL_2_541000_4977000_image_crop": 279,
        "OSBS_029": 61,
        "SOAP_061": 37,
    }
    assert found.images["OSBS_029"][0].tolist() == [2, 214.5, 78, 25, 24, 0]  # 203, 67, 227, 90
    assert (found.images["OSBS_029"][:, 1] + found.images["OSBS_029"][:, 3] / 2).max() == 400
