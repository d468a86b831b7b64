"""Does a runtime compute what the quantizing process did, and if not, which known fault explains it?"""
