"""The networks: ``chatglm.py`` is version 1, ``chatglm2.py`` versions 2 and 3."""

from glm_int4.models import chatglm, chatglm2

Model = chatglm.ChatGLMForConditionalGeneration | chatglm2.ChatGLMForConditionalGeneration
