"""What pyproject.toml cannot say: lib/paramarket_threads.pth belongs into the environment's site-packages.

OpenMP threads wait for each other by spinning, in torch's own libgomp for milliseconds: beside other processes that
makes everything many times slower. Never to spin (OMP_WAIT_POLICY=passive) makes small networks two or three times
slower on a quiet machine, for a step holds dozens of waits of some microseconds each. So threads spin 3,000 times,
about .1 ms, and then let others have the processor. libgomp reads the number when torch is loaded, often before
paramarket is: so it is set at the start of every Python of the environment, which runs such a file. It comes with the
package, on every road: make, conda, pip.
"""

import os
import sys
import sysconfig

from setuptools import Distribution, setup

SITE_PACKAGES = os.path.relpath(sysconfig.get_path("purelib"), sys.prefix)


class WithDataFiles(Distribution):
    """An editable install asks `has_data` before it installs data files; setuptools calls that `has_data_files`."""

    has_data = Distribution.has_data_files


setup(distclass=WithDataFiles, data_files=[(SITE_PACKAGES, ["lib/paramarket_threads.pth"])])
