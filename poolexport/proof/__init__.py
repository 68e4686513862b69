"""Why a file is wrong: which layers introduce the error, and the smallest input that shows it."""
