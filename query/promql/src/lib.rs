//! PromQL: lexer, parser, printer
