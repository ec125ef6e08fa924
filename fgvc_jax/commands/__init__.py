"""The console commands, one a file: `fgvc predict` is `predict.main()`, its flags are sys.argv[1:]."""
