"""The Hugging Face Hub: signing in, checking access, downloading, and every way in which that fails.

Works with huggingface_hub 0.36, 1.x and 2.x, which speak HTTP through three different libraries: failures are told
apart by the classes of `huggingface_hub.errors`, by status and by `X-Error-Code`, never by the text of a message.
"""
