"""`pocket` is the shipped teacher wherever a recipe names a model."""

from limbeck.cli.train import with_pocket
from limbeck.pocket.places import teacher_folder


def test_pocket_is_the_shipped_teacher_in_every_place_of_a_recipe() -> None:
    shipped = str(teacher_folder())
    recipe = {
        "project_name": "pocket",
        "model": {"preset": "bitnet-6m", "tokenizer": "pocket"},
        "teacher": {"kind": "mixed", "teachers": [{"kind": "hf", "path": "pocket"}, {"kind": "hf", "path": "a/b"}]},
    }
    assert with_pocket(recipe) == {
        "project_name": "pocket",
        "model": {"preset": "bitnet-6m", "tokenizer": shipped},
        "teacher": {"kind": "mixed", "teachers": [{"kind": "hf", "path": shipped}, {"kind": "hf", "path": "a/b"}]},
    }
    assert with_pocket({"model": "pocket"}) == {"model": shipped}
    assert with_pocket({"model": "org/student"}) == {"model": "org/student"}
