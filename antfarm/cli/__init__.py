"""The console command `antfarm`: a client like any other, made of the library's public parts. Starts programs by exec, imports none of them."""
