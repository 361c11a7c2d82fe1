"""Text to token ids and back: tokenizers, chat templates, streaming text and stop strings."""

from mla_jax.text.chat_template import ChatTemplate as ChatTemplate
from mla_jax.text.chat_template import TemplateLimits as TemplateLimits
from mla_jax.text.detokenizer import Detokenizer as Detokenizer
from mla_jax.text.protocol import TokenizerLike as TokenizerLike
from mla_jax.text.stop import StopMatcher as StopMatcher
from mla_jax.text.tokenizer import Tokenizer as Tokenizer
from mla_jax.text.tokenizer import load_tokenizer as load_tokenizer
