//! Reports: micro, macro, many, medium and few-shot accuracy.
