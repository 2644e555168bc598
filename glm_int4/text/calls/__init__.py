"""What a model may write so that the call of a tool can be read: grammars for tools' JSON schemas."""
