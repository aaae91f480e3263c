"""From labelled patch stores to a checkpoint whose figures can be trusted: split by patient, threshold from validation patients."""
