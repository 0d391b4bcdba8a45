"""Files of prompts."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from redif_env.teachers.driven.arguments import call_arguments, read_conditions


def test_one_prompt_a_line(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\ntwo dogs\n")
    assert read_conditions(tmp_path / "prompts.txt") == [{"prompt": "a cat"}, {"prompt": "two dogs"}]


def test_json_lines_with_weights_and_pictures(tmp_path):
    Image.new("RGB", (4, 6)).save(tmp_path / "a.png")
    lines = [{"prompt": "x", "image": "a.png", "weight": 3}, {"prompt": "y", "image": "a.png"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments, conditions = call_arguments(read_conditions(tmp_path / "prompts.jsonl"), {})
    assert [sorted(condition) for condition in arguments] == [["image", "prompt"]] * 2
    assert arguments[0]["image"].size == (4, 6)
    assert conditions.weights.tolist() == [3, 1]


def test_conditions_of_a_pipeline_are_a_list_of_what_it_takes():
    """As those of other teachers: no letters of a string, labels of numpy, finite weights."""
    found, table = call_arguments([np.int64(3), {"prompt": "a cat"}, "1984"], {})
    assert found == [{"class_labels": 3}, {"prompt": "a cat"}, {"prompt": "1984"}]
    assert table.weights is None
    for strange in ("a cat", 3, [True], [1.5], [None]):
        with pytest.raises(ValueError, match="conditions"):
            call_arguments(strange, {})
    for weight in (math.inf, math.nan, 0.0, -1.0, "often"):
        for weighted in ({"a cat": weight}, [{"prompt": "a cat", "weight": weight}]):
            with pytest.raises(ValueError, match="weights of conditions must be"):
                call_arguments(weighted, {})


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "latin").write_bytes("café".encode("latin-1"))
    for path in (tmp_path / "none", tmp_path, tmp_path / "latin"):
        with pytest.raises(ValueError, match=f"prompts='{path}' cannot be read"):
            read_conditions(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a cat\n\ntwo dogs\n", "line 2 is empty"),
        ("", "is empty: give one prompt"),
        ('{"prompt": "x"\n', "line 1 is no JSON object"),
        ('{"prompt": "x", "image": "none.png"}\n', "line 1, image names .*none.png, which cannot be opened"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    (tmp_path / "prompts.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_conditions(tmp_path / "prompts.txt")
