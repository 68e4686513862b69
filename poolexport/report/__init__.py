"""What a verification found, for programs (JSON), for CI systems (JUnit XML) and for people (one HTML page)."""
