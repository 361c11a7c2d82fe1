import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from mla_jax.errors import MlaJaxError, RequestError, TemplateError, TokenizerError
from mla_jax.text import Tokenizer, TokenizerLike, load_tokenizer

BOS, EOS, USER, ASSISTANT = "<｜begin｜>", "<｜end｜>", "<｜User｜>", "<｜Assistant｜>"
NAMED = {"bos_token": BOS, "eos_token": {"__type": "AddedToken", "content": EOS, "special": True}}

unicode_text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("before", [(), (BOS,)], ids=["plain", "post-processor"])
@pytest.mark.parametrize("flag", [None, True, False])
@pytest.mark.parametrize("text", ["", "hi", BOS, BOS + "hi"])
def test_at_most_one_bos(make_folder, before, flag, text):
    tokenizer = Tokenizer.from_folder(make_folder({**NAMED, "add_bos_token": flag}, before=before))
    asked = flag if flag is not None else bool(before)
    ids = tokenizer.encode(text)
    assert ids.count(tokenizer.bos_token_id) == int(asked or text.startswith(BOS))
    assert ids[1 if asked or text.startswith(BOS) else 0 :] == tokenizer.encode(
        text.removeprefix(BOS), add_special_tokens=False
    )


def test_bos_that_a_text_repeats_is_kept(make_folder):
    tokenizer = Tokenizer.from_folder(make_folder({**NAMED, "add_bos_token": True}))
    assert tokenizer.encode(BOS + BOS + "a")[:2] == [tokenizer.bos_token_id] * 2
    assert tokenizer.encode("a" + BOS).count(tokenizer.bos_token_id) == 2


@pytest.mark.parametrize("after", [(), (EOS,)])
@pytest.mark.parametrize("flag", [None, True, False])
def test_at_most_one_eos(make_folder, after, flag):
    tokenizer = Tokenizer.from_folder(make_folder({**NAMED, "add_eos_token": flag}, after=after))
    asked = flag if flag is not None else bool(after)
    assert tokenizer.encode("hi").count(tokenizer.eos_token_id) == int(asked)
    assert tokenizer.encode("hi" + EOS).count(tokenizer.eos_token_id) == 1
    assert tokenizer.encode("hi" + EOS)[-1] == tokenizer.eos_token_id


def test_other_tokens_of_the_post_processor_survive_the_flags(make_folder):
    before = (USER, BOS, ASSISTANT)
    folder = make_folder({**NAMED, "add_bos_token": False}, before=before)
    tokenizer = Tokenizer.from_folder(folder)
    others = [tokenizer.encode(t, add_special_tokens=False)[0] for t in (USER, ASSISTANT)]
    assert tokenizer.encode("")[:2] == others
    kept = Tokenizer.from_folder(make_folder({**NAMED, "add_bos_token": True}, before=before))
    assert kept.encode("a") == [
        others[0],
        kept.bos_token_id,
        others[1],
        *kept.encode("a", add_special_tokens=False),
    ]
    assert kept.encode(USER + BOS + ASSISTANT + "a") == kept.encode("a")
    assert kept.encode(BOS + "a").count(kept.bos_token_id) == 1


def test_special_tokens_can_be_left_out(make_folder):
    tokenizer = Tokenizer.from_folder(make_folder({**NAMED, "add_bos_token": True}))
    assert tokenizer.bos_token_id not in tokenizer.encode("hi", add_special_tokens=False)


def test_padding_and_truncation_of_the_file_are_ignored(make_folder):
    folder = make_folder(NAMED)
    file = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    file["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file["padding"] = {
        "strategy": {"Fixed": 16},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (folder / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    assert len(Tokenizer.from_folder(folder).encode("abcdefgh")) == 8


@settings(deadline=None)
@given(unicode_text)
def test_decode_inverts_encode(byte_level, text):
    assert byte_level.decode(byte_level.encode(text), skip_special_tokens=False) == text


@settings(deadline=None)
@given(st.lists(st.integers(-(2**70), 2**70) | st.integers(-3, 400), max_size=20))
def test_any_ids_decode(byte_level, byte_fallback, ids):
    for tokenizer in (byte_level, byte_fallback):
        known = [i for i in ids if 0 <= i < tokenizer.vocab_size]
        assert tokenizer.decode(ids) == tokenizer.decode(known)
        assert isinstance(tokenizer.decode(ids, skip_special_tokens=False), str)


def test_ids_outside_the_vocabulary_give_no_text(byte_level):
    tail = [byte_level.vocab_size, byte_level.vocab_size + 1000, -1, 2**40]
    assert byte_level.decode(tail) == ""
    ids = byte_level.encode("中")
    assert byte_level.decode([*ids[:1], *tail, *ids[1:]]) == "中"


def test_invalid_utf8_decodes_to_replacement_characters(byte_level):
    assert byte_level.decode(byte_level.encode("中")[:2]) == "\ufffd"


def test_decode_takes_arrays(byte_level):
    assert byte_level.decode(np.array(byte_level.encode("中a"), np.int32)) == "中a"


def test_special_flags(make_folder):
    backend_ids = {BOS: None, EOS: None, USER: None}
    first = Tokenizer.from_folder(make_folder(NAMED))
    for text in backend_ids:
        backend_ids[text] = first.encode(text, add_special_tokens=False)[0]
    assert first.decode([backend_ids[BOS], backend_ids[USER]]) == USER
    assert first.decode([backend_ids[BOS]], skip_special_tokens=False) == BOS
    assert first.decode([backend_ids[BOS]], False) == BOS
    flags = {str(backend_ids[USER]): {"content": USER, "special": True}}
    second = Tokenizer.from_folder(make_folder({**NAMED, "added_tokens_decoder": flags}))
    assert second.decode([backend_ids[USER]]) == ""
    third = Tokenizer.from_folder(make_folder({**NAMED, "additional_special_tokens": [USER]}))
    assert third.decode([backend_ids[USER]]) == ""


def test_named_token_of_the_plain_vocabulary_becomes_special(make_folder):
    tokenizer = Tokenizer.from_folder(make_folder({**NAMED, "eos_token": "hello"}))
    assert tokenizer.encode("ahello") == [*tokenizer.encode("a"), tokenizer.eos_token_id]
    assert tokenizer.decode([tokenizer.eos_token_id]) == ""


def test_config_may_add_tokens_that_tokenizer_json_lacks(make_folder):
    size = Tokenizer.from_folder(make_folder(NAMED)).vocab_size
    flags = {str(size): {"content": "<new>", "special": False}}
    tokenizer = Tokenizer.from_folder(make_folder({**NAMED, "added_tokens_decoder": flags}))
    assert tokenizer.encode("<new>") == [size]
    assert tokenizer.vocab_size == size + 1


def test_special_tokens_map_is_the_fallback(make_folder):
    folder = make_folder({"bos_token": None})
    names = {"bos_token": {"content": BOS}, "eos_token": EOS, "pad_token": EOS}
    (folder / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.decode([tokenizer.bos_token_id], skip_special_tokens=False) == BOS
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": BOS}), encoding="utf-8")
    again = Tokenizer.from_folder(folder)
    assert again.eos_token_id == tokenizer.bos_token_id


def test_tokenizer_json_alone_is_enough(make_folder):
    tokenizer = Tokenizer.from_folder(make_folder(None, before=(BOS,)))
    assert tokenizer.bos_token_id is tokenizer.eos_token_id is tokenizer.pad_token_id is None
    assert tokenizer.decode(tokenizer.encode("a"), skip_special_tokens=False) == BOS + "a"


def test_missing_pad_token_is_no_error(make_folder):
    assert Tokenizer.from_folder(make_folder({**NAMED, "pad_token": "<nope>"})).pad_token_id is None


def test_code_in_the_folder_is_not_looked_at(make_folder):
    config = {**NAMED, "auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    folder = make_folder(config)
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')", encoding="utf-8")
    (folder / "tokenization_evil.py").write_text("raise SystemExit", encoding="utf-8")
    Tokenizer.from_folder(folder).encode("a")
    assert not (folder / "ran").exists()


def test_byte_tokens(byte_level, byte_fallback):
    assert byte_level.byte_token_ids == frozenset()
    assert len(byte_fallback.byte_token_ids) == 256


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"bos_token": 7}, "bos_token: expected"),
        ({"bos_token": {"text": "x"}}, "bos_token: expected"),
        ({"bos_token": ""}, "bos_token: expected"),
        ({"eos_token": "<nope>"}, "eos_token '<nope>' is not in the vocabulary"),
        ({"add_bos_token": 1}, "add_bos_token: expected true, false or null, got 1"),
        ({"add_bos_token": True}, "add_bos_token is true"),
        ({"add_eos_token": True}, "add_eos_token is true"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder: expected"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "a token id as key"),
        ({"added_tokens_decoder": {"0": None}}, "expected a token"),
        ({"added_tokens_decoder": {"0": {"content": "!", "special": 1}}}, "special: expected true or false"),
        ({"added_tokens_decoder": {"5": {"content": "<｜User｜>"}}}, "has id 5, the vocabulary says"),
        ({"added_tokens_decoder": {"5": {"content": "<brand new>"}}}, "has id 5, the vocabulary says"),
        ({"additional_special_tokens": "x"}, "additional_special_tokens: expected a list"),
        ({"chat_template": 3}, "chat_template: expected"),
        ({"chat_template": [{"name": "default"}]}, r"chat_template\[0\]: expected"),
        ({"chat_template": [{"name": "a", "template": ""}] * 2}, "occurs twice"),
        ({"chat_template": [{"name": "a", "template": ""}] * 65}, "at most 64"),
    ],
)
def test_malformed_config(make_folder, config, complaint):
    with pytest.raises(TokenizerError, match=complaint) as error:
        Tokenizer.from_folder(make_folder(config))
    assert "tokenizer" in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b'{"a": 1, "a": 2}'],
    ids=["empty", "cut", "list", "null", "bytes", "nan", "deep", "twice"],
)
def test_malformed_json(make_folder, name, content):
    folder = make_folder(NAMED)
    (folder / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=name):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {"type": "Nope"}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {"added_tokens": [{"id": 0}]},
        {"decoder": {"type": "Evil"}},
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "("},
                "behavior": "Isolated",
                "invert": False,
            }
        },
    ],
)
def test_json_that_is_no_tokenizer(make_folder, change):
    folder = make_folder(NAMED)
    file = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**file, **change}), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(folder)


def test_added_token_with_an_impossible_id(make_folder):
    folder = make_folder(NAMED)
    file = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    file["added_tokens"][-1]["id"] = 9999
    (folder / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    with pytest.raises(TokenizerError, match="has id 9999, but its place"):
        Tokenizer.from_folder(folder)


@settings(deadline=None)
@given(st.data())
def test_damaged_files_never_escape_as_another_error(tmp_path_factory, byte_level, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    content = bytearray(byte_level._backend.to_str().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "tokenizer.json").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(MlaJaxError):
        Tokenizer.from_folder(folder).encode("中a" + BOS)


def test_missing_files(tmp_path):
    with pytest.raises(TokenizerError, match="there is no such folder"):
        Tokenizer.from_folder(tmp_path / "nope")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: there is no such file$"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match="SentencePiece"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("text", [None, b"a", 3, ["a"], "\ud800"])
def test_encode_refuses_what_is_no_text(byte_level, text):
    with pytest.raises(RequestError, match=r"^text: expected"):
        byte_level.encode(text)


def test_load_tokenizer(make_folder, byte_level):
    assert isinstance(load_tokenizer(str(make_folder(NAMED))), Tokenizer)

    class Own:
        eos_token_id = None

        def encode(self, text, *, add_special_tokens=True):
            return [ord(c) for c in text]

        def decode(self, ids, *, skip_special_tokens=True):
            return "".join(map(chr, ids))

    own = Own()
    assert isinstance(own, TokenizerLike)
    assert load_tokenizer(own) is own
    assert load_tokenizer(byte_level) is byte_level
    with pytest.raises(TokenizerError, match="expected a checkpoint folder or an object"):
        load_tokenizer(3)


def chat(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


SIMPLE = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"


def test_encode_chat_adds_no_second_bos(make_folder):
    config = {**NAMED, "add_bos_token": True, "chat_template": SIMPLE}
    tokenizer = Tokenizer.from_folder(make_folder(config, before=(BOS,)))
    text = tokenizer.render_chat(chat(("user", "hi")))
    assert text == BOS + "user:hi;"
    ids = tokenizer.encode_chat(chat(("user", "hi")))
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids) == "user:hi;"
    assert tokenizer.encode(text) == ids


def test_template_without_bos_gets_none(make_folder):
    config = {**NAMED, "add_bos_token": True, "chat_template": "{{ messages[0].content }}"}
    tokenizer = Tokenizer.from_folder(make_folder(config))
    assert tokenizer.bos_token_id not in tokenizer.encode_chat(chat(("user", "hi")))


def test_choice_of_template(make_folder):
    templates = [
        {"name": "default", "template": "D"},
        {"name": "tool_use", "template": "T"},
        {"name": "x", "template": "X"},
    ]
    folder = make_folder({**NAMED, "chat_template": templates})
    tokenizer = Tokenizer.from_folder(folder)
    messages = chat(("user", "hi"))
    assert tokenizer.render_chat(messages) == "D"
    assert tokenizer.render_chat(messages, tools=[{"name": "f"}]) == "T"
    assert tokenizer.render_chat(messages, tools=[{"name": "f"}], chat_template="default") == "D"
    assert tokenizer.render_chat(messages, chat_template="x") == "X"
    with pytest.raises(TemplateError, match=r"no chat template 'y' .*templates: default, tool_use, x"):
        tokenizer.render_chat(messages, chat_template="y")
    (folder / "chat_template.jinja").write_text("F中", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("R", encoding="utf-8")
    files = Tokenizer.from_folder(folder)
    assert files.templates == {"default": "F中", "rag": "R"}
    assert files.render_chat(messages) == "F中"


def test_no_template(make_folder):
    with pytest.raises(TemplateError, match="never run"):
        Tokenizer.from_folder(make_folder(NAMED)).encode_chat(chat(("user", "hi")))


@pytest.mark.parametrize("content", [b"\xff", b"a" * 1_000_001])
def test_template_file_that_cannot_be_read(make_folder, content):
    folder = make_folder(NAMED)
    (folder / "chat_template.jinja").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja"):
        Tokenizer.from_folder(folder)


def test_template_file_that_is_a_folder(make_folder):
    folder = make_folder(NAMED)
    (folder / "chat_template.jinja").mkdir()
    with pytest.raises(TokenizerError, match="expected a regular file"):
        Tokenizer.from_folder(folder)


def test_normalised_added_tokens_keep_their_ids(make_folder):
    def backend():
        from_conftest = Tokenizer.from_folder(make_folder(NAMED))._backend
        from_conftest.add_tokens([AddedToken("<think>", normalized=True)])
        return from_conftest

    tokenizer = Tokenizer.from_folder(make_folder(NAMED, backend=backend))
    assert tokenizer.encode("<think>") == [tokenizer.vocab_size - 1]
