"""The families of methods: the classes that methods derive from."""
