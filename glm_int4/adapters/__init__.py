"""Adapters as peft writes them: read, checked against the model, and put beside its matrices.

``adapter_source.py`` finds the folder, ``lora_settings.py`` reads its ``adapter_config.json``, ``lora_tensors.py``
checks the tensors, ``applying.py`` makes them part of a model. ``reading.py`` is the way through all of them.
``named_adapters.py`` has several beside one model, ``weight_merging.py`` makes them part of a checkpoint's own weights.
What would change the model's answers and is not known here is refused: nothing of an adapter is left out in silence.
"""
