//! `--param KEY=VALUE`.

use serde_json::{Map, Value};

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Param {
    key: String,
    value: Value,
}

/// Reads `KEY=VALUE`: the value as JSON, else as text.
pub(super) fn param(text: &str) -> Result<Param, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            let (key, value) = (key.trim().to_owned(), value.trim());
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
            Ok(Param { key, value })
        }
        _ => Err("a parameter is KEY=VALUE, such as epochs=20".to_owned()),
    }
}

/// All of them as one object; a key that stands twice is refused.
pub(super) fn object(params: &[Param]) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    for Param { key, value } in params {
        if object.insert(key.clone(), value.clone()).is_some() {
            return Err(format!("--param: `{key}` is given twice"));
        }
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_json_or_else_text() {
        let read = ["epochs=20", "tau=[0, 0.5]", "bias=best", "learning_rate=1e-3", " q = 0.5 ", "x=a=b", "y="];
        let read = object(&read.map(|text| param(text).expect("a parameter"))).expect("none is there twice");
        let expected = serde_json::json!({
            "epochs": 20, "tau": [0, 0.5], "bias": "best", "learning_rate": 1e-3, "q": 0.5, "x": "a=b", "y": "",
        });
        assert_eq!(Value::Object(read), expected);
        assert!(param("epochs").is_err() && param("=3").is_err());
    }

    #[test]
    fn a_key_stands_once() {
        let twice = ["seed=1", "seed=1"].map(|text| param(text).expect("a parameter"));
        assert_eq!(object(&twice).expect_err("it is there twice"), "--param: `seed` is given twice");
    }
}
