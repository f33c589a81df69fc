"""`python -m ms_enclave.jupyter -f FILE`: what a kernel spec starts. See `bridge`."""

from ms_enclave.jupyter.bridge import main

if __name__ == "__main__":
    main()
