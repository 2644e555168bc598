"""What a mask allows is what decoding makes of it, for every tokenizer: white space, bytes, the first space."""

import random
import re
import sys

import pytest

from glm_int4.errors import GLMError, InputError
from glm_int4.generation.constraints.compiler import ConstraintCompiler
from glm_int4.generation.constraints.constraint import read_constraint
from glm_int4.text import load_tokenizer
from tests.conftest import MINI

SIZES = {"1": 130528, "2": 65024, "3": 65024}
PATTERNS = [
    r" {0,3}a? {0,90}b",
    r"(<|n|>|\||tab|blank_|2){1,8}",
    r"\n{0,2} {2,9}\t?(汉字|é|😀){1,3}",
    r"(\x00|\x7f|\n| |\xff){1,5}",
    r" ",
    r"( |a){2,6}",
]
TEXTS = ['{"a": 1, "b": [true, null]}', "中文，b。", "a\n\tb  c     d", "😀 é", "  a", " a", "<n"]


@pytest.fixture(scope="module", params=["mini 1", "small 2", "small 3", "official 1", "official 2"])
def compiler(request):
    kind, version = request.param.split()
    if kind == "mini":
        return ConstraintCompiler(load_tokenizer(MINI), 1280)
    if kind == "small":
        folder = request.getfixturevalue("small_checkpoints")[version]
        return ConstraintCompiler(load_tokenizer(folder, version), 512)
    folder = request.getfixturevalue("official_tokenizers")
    return ConstraintCompiler(load_tokenizer(folder / f"v{version}", version), SIZES[version])


def walk(compiler, constraint, chance, before=()):
    """Ids that masks allow, picked by chance; all of them where the answer ended."""
    tokenizer, ids = compiler._tokenizer, []
    matcher = compiler.matcher(constraint, frozenset(tokenizer.stop_ids), at_start=not before)
    while len(ids) < 200:
        allowed = matcher.mask().nonzero().flatten().tolist()
        token = chance.choice(allowed)
        matcher.accept(token)
        if token in tokenizer.stop_ids:
            assert matcher.is_complete
            return ids
        ids.append(token)
        if matcher.is_complete:
            return ids
    return ids


@pytest.mark.parametrize("pattern", PATTERNS)
def test_whatever_is_allowed_decodes_to_what_was_asked_for(compiler, pattern):
    tokenizer, chance = compiler._tokenizer, random.Random(pattern)
    constraint = read_constraint(regex=pattern)
    for _ in range(40):
        ids = walk(compiler, constraint, chance)
        text = tokenizer.decode(ids)
        assert re.fullmatch(pattern, text), (text, [tokenizer.id_to_piece(i) for i in ids])


def test_behind_other_text_the_first_space_counts(compiler):
    tokenizer, chance = compiler._tokenizer, random.Random(0)
    before = tokenizer.encode("a")
    for _ in range(20):
        ids = walk(compiler, read_constraint(regex=" ?b"), chance, before)
        assert tokenizer.decode([*before, *ids]) in ("a b", "ab")


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_may_be_written_as_the_tokenizer_cuts_it(compiler, text):
    tokenizer = compiler._tokenizer
    ids = tokenizer.encode(text)
    if tokenizer.decode(ids) != text:
        pytest.skip("this tokenizer changes the text")  # version 1 normalizes, and drops spaces in front
    matcher = compiler.matcher(read_constraint(choices=[text]), frozenset())
    for token in ids:
        assert matcher.mask()[token], tokenizer.id_to_piece(token)
        matcher.accept(token)
    assert matcher.is_complete


def test_an_answer_may_end_where_it_is_complete_and_only_there(compiler):
    tokenizer = compiler._tokenizer
    stops = frozenset(tokenizer.stop_ids)
    matcher = compiler.matcher(read_constraint(regex="ab?"), stops)
    assert not matcher.mask()[list(stops)].any()
    matcher.accept(next(i for i in tokenizer.encode("a") if tokenizer.decode([i]) == "a"))
    assert matcher.mask()[list(stops)].all()
    assert not matcher.is_complete
    matcher.accept(min(stops))
    assert matcher.is_complete
    assert matcher.mask().all()
    without = compiler.matcher(read_constraint(regex="ab?"), frozenset())
    assert not without.mask()[list(stops)].any()


def test_special_tokens_never_come(compiler):
    tokenizer = compiler._tokenizer
    mask = compiler.matcher(read_constraint(regex=r"[\s\S]*"), frozenset()).mask()
    special = [tokenizer.gmask_id, tokenizer.sop_id, tokenizer.mask_id, tokenizer.eos_id, *tokenizer.role_ids.values()]
    assert not mask[special].any()
    assert not mask[tokenizer.vocab_size :].any()
    assert mask.sum() > 0.9 * (tokenizer.vocab_size - 256 - len(special))


def test_what_no_token_can_go_on_with_is_an_error():
    compiler = ConstraintCompiler(load_tokenizer(MINI), 1280)
    constraint = read_constraint(regex="a(<n>)")
    with pytest.raises(GLMError, match="expected a constraint that some token can go on with"):
        walk(compiler, constraint, random.Random(0))
    with pytest.raises(InputError, match=r"expected a constraint that can be kept, got .*repet"):
        compiler.matcher(read_constraint(regex="*a"), frozenset())
    with pytest.raises(InputError, match="expected a constraint that can be kept"):
        compiler.matcher(read_constraint(grammar="begin: 'a'"), frozenset())


def test_compiled_constraints_are_kept_for_a_while(monkeypatch):
    compiler = ConstraintCompiler(load_tokenizer(MINI), 1280)
    compiled, compile_one = [], ConstraintCompiler._compile
    monkeypatch.setattr(
        compiler, "_compile", lambda vocabulary, constraint: compiled.append(1) or compile_one(vocabulary, constraint)
    )
    for _ in range(2):
        first = compiler.matcher(read_constraint(regex="ab"), frozenset())
        first.accept(int(first.mask().nonzero()[0]))
    assert len(compiled) == 1
    for i in range(40):
        compiler.matcher(read_constraint(regex=f"a{i}"), frozenset())
    compiler.matcher(read_constraint(regex="ab"), frozenset())
    assert len(compiled) == 42


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match=r"got none; install it with: pip install 'glm-int4\[structured\]'$"):
        ConstraintCompiler(load_tokenizer(MINI), 1280).matcher(read_constraint(regex="a"), frozenset())


def test_slashes_and_escapes_of_a_regular_expression_are_its_own():
    compiler = ConstraintCompiler(load_tokenizer(MINI), 1280)
    for pattern, text in ((r"a/b", "a/b"), (r"a\/b", "a/b"), (r"a\\/b", "a\\/b"), ("a\nb", "a\nb"), (r"\x2f", "/")):
        ids = walk(compiler, read_constraint(regex=pattern), random.Random(0))
        assert compiler._tokenizer.decode(ids) == text
    with pytest.raises(InputError):
        compiler.matcher(read_constraint(regex="a\\"), frozenset())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"regex": "a", "choices": ["a"]}, "expected at most one constraint, got regex and choices"),
        ({"regex": ""}, "expected regex to be a text that is not empty, got ''"),
        ({"regex": 3}, "expected regex to be a text"),
        ({"choices": []}, "expected choices to be a list of texts, got []"),
        ({"choices": "ab"}, "expected choices to be a list of texts, got 'ab'"),
        ({"choices": ["a", ""]}, "expected each of choices to be a text that is not empty"),
        ({"choices": ["a" * 60000, "b" * 60000]}, "expected choices of at most 65536 characters, got 120000"),
        ({"grammar": "x" * 70000}, "expected a grammar of at most 65536 characters, got 70000"),
        ({"regex": "\ud800"}, "expected regex to be text, got a lone surrogate at character 0"),
    ],
    ids=str,
)
def test_what_is_no_constraint_is_refused(arguments, says):
    with pytest.raises(InputError) as error:
        read_constraint(**arguments)
    assert says in str(error.value)
