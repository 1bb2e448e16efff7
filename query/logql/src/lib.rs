//! LogQL: lexer, parser, printer
