"""The helpers every chapter starts with: setup_chapter, show, agree, the map."""

from __future__ import annotations

import functools
import os
import random
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from torch import Tensor

from r1lite.book import agree, chapter_of, load_book, setup_chapter, show
from r1lite.errors import R1Error


@pytest.fixture
def _restored(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """setup_chapter is meant for a kernel of its own: put everything back."""
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    with warnings.catch_warnings(), matplotlib.rc_context():
        yield
    torch.set_printoptions(profile="default")
    np.set_printoptions(precision=8, suppress=False, linewidth=75)


@pytest.mark.usefixtures("_restored")
class TestSetupChapter:
    def test_all_generators_restart(self) -> None:
        draws = []
        for _ in range(2):
            setup_chapter()
            draws.append((random.random(), np.random.rand(), float(torch.rand(()))))
        assert draws[0] == draws[1]

    def test_another_seed_gives_other_numbers(self) -> None:
        setup_chapter(0)
        first = float(torch.rand(()))
        setup_chapter(1)
        assert float(torch.rand(())) != first

    def test_it_undoes_what_an_earlier_cell_switched(self) -> None:
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        setup_chapter()
        assert torch.is_grad_enabled()
        assert torch.tensor([0.5]).dtype == torch.float32

    def test_torch_is_deterministic_on_one_thread(self) -> None:
        torch.set_num_threads(2)
        setup_chapter()
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()

    def test_numbers_print_in_four_decimals_without_exponents(self) -> None:
        setup_chapter()
        assert str(torch.tensor([1e-3, 1 / 3])) == "tensor([0.0010, 0.3333])"
        assert str(np.array([1e-3, 1 / 3])) == "[0.001  0.3333]"

    def test_it_is_quiet(self, recwarn: pytest.WarningsRecorder) -> None:
        setup_chapter()
        warnings.warn("a library grumbles", stacklevel=1)
        assert not recwarn.list
        assert os.environ["TQDM_DISABLE"] == "1"

    def test_figures_have_one_size(self) -> None:
        setup_chapter()
        assert matplotlib.rcParams["figure.figsize"] == [7.0, 3.2]


class Shelf:
    """Something to show."""

    @property
    def width(self) -> int:
        return 3

    @classmethod
    def empty(cls) -> Shelf:
        return cls()

    @torch.no_grad()
    def quiet(self) -> int:
        return 4


class TestShow:
    def test_a_class_prints_its_source(self, capsys: pytest.CaptureFixture) -> None:
        show(Shelf)
        out = capsys.readouterr().out
        assert out.startswith("class Shelf:\n")
        assert out.endswith("return 4\n")

    @pytest.mark.parametrize(
        ("thing", "first"),
        [
            (Shelf.width, "@property"),
            (Shelf.empty, "@classmethod"),
            (Shelf.quiet, "@torch.no_grad()"),
            (Shelf().quiet, "@torch.no_grad()"),
            (show, "def show(*things: Any) -> None:"),
        ],
    )
    def test_members_are_dedented(
        self, thing: object, first: str, capsys: pytest.CaptureFixture
    ) -> None:
        show(thing)
        assert capsys.readouterr().out.splitlines()[0] == first

    def test_several_are_printed_one_after_the_other(
        self, capsys: pytest.CaptureFixture
    ) -> None:
        show(Shelf.width, Shelf.empty)
        assert "return 3\n\n@classmethod" in capsys.readouterr().out

    @pytest.mark.parametrize("thing", [3, "r1lite", Shelf(), torch, len, torch.relu])
    def test_what_has_no_source_is_refused(self, thing: object) -> None:
        with pytest.raises(R1Error, match=r"^show: .+; give .+$"):
            show(thing)


@dataclass
class Routed:
    weights: Tensor
    experts: list[int]


def _halve(x: Tensor) -> Tensor:
    return x / 2


class TestAgree:
    def test_equal_results_print_one_line(self, capsys: pytest.CaptureFixture) -> None:
        agree(_halve, lambda x: x * 0.5, torch.randn(3, 4))
        assert capsys.readouterr().out == "max |difference| < 1e-06: True\n"

    def test_the_tolerance_is_printed_and_used(
        self, capsys: pytest.CaptureFixture
    ) -> None:
        x = torch.zeros(2)
        agree(_halve, lambda x: x + 5e-3, x, tol=1e-2)
        assert capsys.readouterr().out == "max |difference| < 0.01: True\n"
        with pytest.raises(AssertionError, match=r"allowed is 0\.001"):
            agree(_halve, lambda x: x + 5e-3, x, tol=1e-3)

    def test_a_difference_names_size_place_and_values(self) -> None:
        wrong = torch.zeros(2, 3)
        wrong[1, 2] = 0.25
        with pytest.raises(AssertionError) as error:
            agree(_halve, lambda _: wrong, torch.zeros(2, 3))
        assert str(error.value) == (
            "max |difference| = 0.25, allowed is 1e-06; "
            "size (2, 3), index [1, 2]: 0 against 0.25"
        )

    @pytest.mark.parametrize(
        ("slow", "fast", "message"),
        [
            (torch.zeros(2), torch.zeros(2, 1), r"\(2,\) against \(2, 1\)"),
            (
                torch.zeros(2),
                torch.tensor([0.0, torch.nan]),
                r"\[1\]: 0 against nan",
            ),
            (torch.tensor([torch.nan]), torch.tensor([torch.nan]), "= nan"),
            ((1, 2), (1, 2, 3), "different parts"),
            ({"a": 1}, {"b": 1}, "different parts"),
            ([1.0, 2.0], [1.0, 2.5], r"at result\[1\]"),
            (Routed(torch.ones(2), [0]), Routed(torch.ones(2), [1]), r"result.experts"),
            (torch.zeros(0), torch.zeros(0), "nothing was compared"),
            (None, None, "nothing was compared"),
            ("yes", "yes", "cannot compare a str"),
        ],
    )
    def test_everything_else_that_differs_raises(
        self, slow: object, fast: object, message: str
    ) -> None:
        with pytest.raises(AssertionError, match=message):
            agree(lambda: slow, lambda: fast)

    def test_infinities_in_the_same_place_are_equal(self) -> None:
        agree(lambda x: x, lambda x: x.clone(), torch.tensor([-torch.inf, 1.0]))

    def test_integers_and_booleans_are_compared_exactly(self) -> None:
        agree(lambda x: x > 0, lambda x: x.sign().int(), torch.tensor([0.0, 2.0]))

    def test_compare_picks_a_part(self) -> None:
        left, right = Routed(torch.ones(2), [0]), Routed(torch.ones(2), [1])
        agree(lambda: left, lambda: right, compare=lambda r: r.weights)

    def test_both_start_from_the_same_random_state(self) -> None:
        before = torch.get_rng_state()
        agree(torch.randn, functools.partial(torch.randn), 4)
        assert torch.equal(torch.get_rng_state(), before)

    def test_gradients_do_not_stand_in_the_way(self) -> None:
        agree(_halve, _halve, torch.ones(2, requires_grad=True))


class TestTheMap:
    def test_the_chapters_are_numbered_in_order(self) -> None:
        chapters = load_book().chapters
        assert [c.number for c in chapters] == list(range(16))
        for chapter in chapters:
            assert chapter.notebook.startswith(f"{chapter.number:02d}_")
            assert chapter.status in ("written", "planned")
            assert chapter.title and chapter.article and chapter.modules

    def test_no_module_is_named_twice(self) -> None:
        book = load_book()
        names = [m for c in book.chapters for m in c.modules] + list(book.on_top)
        assert len(names) == len(set(names))

    @pytest.mark.parametrize(
        ("module", "number"),
        [
            ("r1lite", 0),
            ("r1lite.config", 0),
            ("r1lite.moe", 1),
            ("r1lite.moe.layer", 2),
            ("r1lite.attention.mla", 3),
            ("r1lite.data", 7),
            ("r1lite.data.chat", 8),
            ("r1lite.evaluation", 10),
        ],
    )
    def test_modules_belong_to_chapters(self, module: str, number: int) -> None:
        assert chapter_of(module).number == number

    @pytest.mark.parametrize("module", ["r1lite.cli", "r1lite.configs", "torch"])
    def test_others_belong_to_none(self, module: str) -> None:
        with pytest.raises(R1Error, match="is in no chapter"):
            chapter_of(module)

    def test_only_one_chapter_is_the_tour(self) -> None:
        assert [c.number for c in load_book().chapters if c.tour] == [0]

    def test_a_misspelt_key_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "map.toml"
        path.write_text("on_top = []\n[[chapter]]\nnumbr = 0\nmodules = []\n")
        with pytest.raises(R1Error, match="numbr"):
            load_book(path)
