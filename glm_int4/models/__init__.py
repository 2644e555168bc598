"""The networks: ``chatglm.py`` is version 1, ``chatglm2.py`` versions 2 and 3; ``model.py`` has what they share."""

from glm_int4.models import chatglm, chatglm2
from glm_int4.models.config import ChatGLMConfig, Config
from glm_int4.models.model import Model as Model
from glm_int4.quantization.embedding import HostEmbedding, TokenEmbedding
from glm_int4.quantization.linear import LinearFactory, dense_linear


def make_model(
    config: Config,
    make_linear: LinearFactory = dense_linear,
    embeddings: TokenEmbedding | None = None,
    *,
    half_tables: bool = True,
) -> Model:
    """The network of a config.

    Args:
        make_linear: makes every linear, by its name.
        embeddings: None makes an unquantized one.
        half_tables: rotary angles as officially in half precision.
    """
    if isinstance(config, ChatGLMConfig):
        assert not isinstance(embeddings, HostEmbedding), "version 1 multiplies with its embedding"
        return chatglm.ChatGLMForConditionalGeneration(config, make_linear, embeddings, half_tables=half_tables)
    return chatglm2.ChatGLMForConditionalGeneration(config, make_linear, embeddings, half_tables=half_tables)
