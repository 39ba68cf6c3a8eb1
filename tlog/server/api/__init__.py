"""The log over HTTP. Handlers only translate: parse, call one function, encode."""
