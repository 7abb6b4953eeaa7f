"""The Hugging Face Hub: signing in, checking access, downloading, and every way in which that fails.

Works with huggingface_hub 0.36, 1.x and 2.x, which speak HTTP through three different libraries: failures are
recognized by the classes of errors, by status and by `X-Error-Code`, never by the text of a message.

Whatever stands at HF_ENDPOINT may be hostile. Its answers are read here and not by huggingface_hub, in strict forms
(`names.py`) and within bounds (`transport.py`); files get their names in the cache from the hash of their content.
"""

from ..extras import need
from .settings import check_numbers

need("hub", "huggingface_hub")
# Before huggingface_hub is imported, which reads these at once.
check_numbers()
