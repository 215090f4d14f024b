"""Now `vl2v.deploy.runtime`; this name of it goes with the next release."""

from vl2v.deploy.runtime import *  # noqa: F403
