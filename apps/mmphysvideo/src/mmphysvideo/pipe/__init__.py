"""MMPhysPipe: from plain videos to clips with pseudo-RGB, captions and the evidence for both."""
