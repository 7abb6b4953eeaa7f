"""ortkit side by side with its peers, in one run."""

import os

# Set here, so that it holds before any of the libraries is imported, and in every process that a benchmark starts.
os.environ.update(
    ORT_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    NNCF_CI="1",  # NNCF sends its telemetry unless this is set
)
