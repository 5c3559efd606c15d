"""Raw exports become MEDS datasets; nothing above this package knows a raw format."""
