"""Is a run healthy, finished or in progress, and is the rest of its budget worth spending?"""
