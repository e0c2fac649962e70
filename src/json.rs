//! JSON from outside, read strictly: what serde lets pass is refused, and an error names the key and no type of ours.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IntoDeserializer},
};
use serde_json::{Map, Value};

/// Characters of a message that are kept where it begins, and where it ends: it may quote megabytes of what somebody sent.
const KEPT: (usize, usize) = (150, 250);
/// The same of the part that quotes a value.
const KEPT_OF_FOUND: (usize, usize) = (120, 30);
/// What serde calls the types of values, and what they are called in JSON.
const WORDS: [(&str, &str); 7] = [
    ("f64", "a number"),
    ("u32", "a whole number from 0 to 4294967295"),
    ("u64", "a whole number from 0"),
    ("usize", "a whole number from 0"),
    ("a sequence", "a list"),
    ("a map", "an object"),
    ("a boolean", "true or false"),
];

/// Takes a value that stands there, and refuses `null`: what is not meant is left out.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Takes one of the names of an enum, as a string: serde would take `{"name": null}` for it too.
pub(crate) fn name<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

/// [`name`] and [`present`] in one.
pub(crate) fn present_name<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    name(deserializer).map(Some)
}

/// `map` as `T`, or what is wrong with it. The error names the key: of a value of another type serde says the type alone.
pub(crate) fn fields<T: DeserializeOwned>(map: &Map<String, Value>) -> Result<T, String> {
    let error = match T::deserialize(map) {
        Ok(read) => return Ok(read),
        Err(error) => error.to_string(),
    };
    if error.starts_with("missing field") || error.starts_with("unknown field") {
        return Err(plain(&error));
    }
    // Alone, what is wrong is wrong in the same way.
    let alone = |key: &str, value: &Value| T::deserialize(&Map::from_iter([(key.to_owned(), value.clone())])).err();
    let is_wrong = |(key, value): &(&String, &Value)| alone(key, value).is_some_and(|found| found.to_string() == error);
    let key = map.iter().find(is_wrong).map(|(key, _)| key);
    Err(key.map_or_else(|| plain(&error), |key| plain(&format!("`{key}`: {error}"))))
}

/// What serde says is wrong, in JSON's words, of a length that can be read, and without a place in the text.
pub(crate) fn plain(error: &str) -> String {
    let error = match error.rsplit_once(" at line ") {
        Some((error, place)) if place.contains(" column ") => error,
        _ => error,
    };
    let (found, expected) = error.rsplit_once(", expected ").unwrap_or((error, ""));
    let found = without_middle(found, KEPT_OF_FOUND).replace("invalid type: sequence", "invalid type: list");
    let found = found.replace("invalid type: map", "invalid type: object");
    match WORDS.iter().find(|(word, _)| *word == expected) {
        Some((_, word)) => format!("{found}, expected {word}"),
        None if expected.is_empty() => found,
        None => shortened(&format!("{found}, expected {expected}")),
    }
}

/// `message` without its middle, if it is long.
pub(crate) fn shortened(message: &str) -> String {
    without_middle(message, KEPT)
}

fn without_middle(message: &str, (start, end): (usize, usize)) -> String {
    let start = message.char_indices().nth(start).map_or(message.len(), |(at, _)| at);
    let end = message.char_indices().rev().nth(end - 1).map_or(0, |(at, _)| at);
    if start < end { format!("{}…{}", &message[..start], &message[end..]) } else { message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Colour {
        #[default]
        Red,
        DarkBlue,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Paint {
        #[serde(deserialize_with = "name")]
        colour: Colour,
        #[serde(deserialize_with = "present_name")]
        second: Option<Colour>,
        #[serde(deserialize_with = "present")]
        litres: Option<f64>,
        tins: Vec<u32>,
    }

    fn read(json: &str) -> Result<Paint, String> {
        fields(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn what_is_as_it_should_be_is_read() {
        let read = read(r#"{"colour": "dark_blue", "second": "red", "litres": 2, "tins": [1, 2]}"#).unwrap();
        let expected =
            Paint { colour: Colour::DarkBlue, second: Some(Colour::Red), litres: Some(2.0), tins: vec![1, 2] };
        assert_eq!(read, expected);
    }

    #[test]
    fn an_error_names_the_key_and_no_type_of_rust() {
        for (json, said) in [
            (r#"{"colour": {"red": null}}"#, "`colour`: invalid type: object, expected a string"),
            (r#"{"second": {"red": null}}"#, "`second`: invalid type: object, expected a string"),
            (r#"{"second": null}"#, "`second`: invalid type: null, expected a string"),
            (r#"{"colour": "green"}"#, "`colour`: unknown variant `green`, expected `red` or `dark_blue`"),
            (r#"{"litres": "2"}"#, r#"`litres`: invalid type: string "2", expected a number"#),
            (r#"{"litres": 1, "tins": 3}"#, "`tins`: invalid type: integer `3`, expected a list"),
            (r#"{"tins": [-1]}"#, "`tins`: invalid value: integer `-1`, expected a whole number from 0 to 4294967295"),
            (r#"{"tin": 1}"#, "unknown field `tin`, expected one of `colour`, `second`, `litres`, `tins`"),
            (r#"{"tins": {}}"#, "`tins`: invalid type: object, expected a list"),
        ] {
            assert_eq!(read(json).unwrap_err(), said, "{json}");
        }
    }

    #[test]
    fn what_is_long_is_shortened_and_its_ends_are_kept() {
        let long = "é".repeat(1 << 20);
        let error = read(&format!(r#"{{"litres": "{long}"}}"#)).unwrap_err();
        assert!(error.starts_with("`litres`: invalid type: string \"éé") && error.ends_with(", expected a number"));
        assert!(error.contains('…') && error.chars().count() < 200, "{}", error.len());
        let error = read(&format!(r#"{{"{long}": 1}}"#)).unwrap_err();
        assert!(error.starts_with("unknown field `éé") && error.ends_with("`litres`, `tins`"));
        assert!(error.chars().count() < 250);
        let whole = "x".repeat(KEPT.0 + KEPT.1);
        assert_eq!(shortened(&whole), whole);
        assert_eq!(shortened(&(whole.clone() + "x")).chars().filter(|&c| c == 'x').count(), whole.len());
    }
}
