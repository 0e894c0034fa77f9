"""The commands of the command line as functions, for scripts and notebooks; imported as `sslcli.train` and so on."""
