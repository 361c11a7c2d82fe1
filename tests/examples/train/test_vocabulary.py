"""The tokenizer of the trained model, and the one that a run of the script makes."""

import json
from itertools import islice

import pytest
import vocabulary
from tokenizers import Tokenizer

from mla_jax.tasks.arithmetic import problems
from mla_jax.tasks.problem import SPLITS, TEST_NAMES
from mla_jax.text.tokenizer import Tokenizer as CheckpointTokenizer

TEXT = "Größe 文字 🙂\n  12,345.60 = 7 * 8\t$5 don't"
DIGITS = set("0123456789")


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "TRAINING_PROBLEMS", 300)
        folder = tmp_path_factory.mktemp("tokenizer")
        vocabulary.write_tokenizer(vocabulary.train_tokenizer(512), folder)
    return folder


@pytest.fixture(params=["shipped", "new"])
def folder(request):
    return request.getfixturevalue(request.param)


def test_its_size_and_special_tokens(folder, new):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == (512 if folder == new else 1024)
    for number, token in enumerate(vocabulary.SPECIAL_TOKENS):
        assert tokenizer.token_to_id(token) == number
    assert (vocabulary.BOS, vocabulary.EOS) == (0, 1)


def test_every_digit_is_a_token(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    digits = {tokenizer.token_to_id(digit) for digit in "0123456789"}
    assert len(digits) == 10
    text = "7 + 1024 = 1031, 90% x2\n#### 5"
    tokens = tokenizer.encode(text).tokens
    assert [token for token in tokens if DIGITS & set(token)] == [char for char in text if char in DIGITS]
    # Nor does any other token hide one.
    assert sum(bool(DIGITS & set(token)) for token in tokenizer.get_vocab()) == 10


def test_text_comes_back(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [TEXT]
    for split in SPLITS:
        texts += [problem.question + "\n" + problem.solution for problem in islice(problems(split), 20)]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_no_name_of_the_test_is_a_token(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert not {name for name in TEST_NAMES if tokenizer.token_to_id("Ġ" + name) is not None}


def test_the_chat_template(folder):
    tokenizer = CheckpointTokenizer.from_folder(folder)
    ids = tokenizer.encode_chat([{"role": "user", "content": "2 + 2?"}])
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    middle = plain.encode("2 + 2?", add_special_tokens=False).ids
    assert ids == [vocabulary.BOS, vocabulary.USER, *middle, vocabulary.ASSISTANT]


def test_the_shipped_settings_are_the_scripts(shipped, new):
    one, two = (json.loads((folder / "tokenizer_config.json").read_text()) for folder in (shipped, new))
    assert one == two
