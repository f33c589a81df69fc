"""Run code that a model wrote: isolated, in milliseconds, anywhere.

Every public name is here, and is imported when it is first used: importing the package costs
nothing and loads no backend.
"""
