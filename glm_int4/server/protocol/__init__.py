"""What requests and answers may look like in OpenAI's protocol and its dialects.

``fields.py`` reads what was sent as it was meant; ``answer_writer.py`` makes the objects that are sent back.
"""
