//! Images or features in a JSON body, read in one pass.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};

use super::{body::json_with, error::ApiError};
use crate::batcher::Inputs;

/// The images or the features of a JSON body.
pub(super) fn json_inputs(body: &[u8], feature_dim: usize) -> Result<Inputs, ApiError> {
    let parsed: JsonInputs = json_with(body, JsonInputsSeed { feature_dim })?;
    match (parsed.images, parsed.features) {
        (Some(images), None) if images.is_empty() => Err(ApiError::Invalid("`images` is empty".to_owned())),
        (None, Some((_, 0))) => Err(ApiError::Invalid("`features` is empty".to_owned())),
        (Some(images), None) => {
            let decode = |(index, image): (usize, String)| {
                let invalid = |error| ApiError::Invalid(format!("image {index}: `b64` is not base64: {error}"));
                STANDARD.decode(image).map(Bytes::from).map_err(invalid)
            };
            images.into_iter().enumerate().map(decode).collect::<Result<_, _>>().map(Inputs::Images)
        }
        (None, Some((rows, n))) => Ok(Inputs::Features { rows, n }),
        (Some(_), Some(_)) => Err(ApiError::Invalid("`images` and `features` exclude each other".to_owned())),
        (None, None) => Err(ApiError::Invalid("the body needs `images` or `features`".to_owned())),
    }
}

#[derive(Default)]
struct JsonInputs {
    /// The `b64` of each.
    images: Option<Vec<String>>,
    /// The values in row-major order, and the number of rows.
    features: Option<(Vec<f32>, usize)>,
}

struct JsonInputsSeed {
    feature_dim: usize,
}

impl<'de> DeserializeSeed<'de> for JsonInputsSeed {
    type Value = JsonInputs;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<JsonInputs, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for JsonInputsSeed {
    type Value = JsonInputs;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `images` or `features`")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonInputs, A::Error> {
        let mut inputs = JsonInputs::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "images" if inputs.images.is_none() => inputs.images = Some(map.next_value_seed(ImagesSeed)?),
                "features" if inputs.features.is_none() => {
                    inputs.features = Some(map.next_value_seed(RowsSeed { feature_dim: self.feature_dim })?);
                }
                "images" | "features" => return Err(A::Error::custom(format!("`{key}` stands there twice"))),
                _ => return Err(A::Error::unknown_field(&key, &["images", "features"])),
            }
        }
        Ok(inputs)
    }
}

struct ImagesSeed;

impl<'de> DeserializeSeed<'de> for ImagesSeed {
    type Value = Vec<String>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ImagesSeed {
    type Value = Vec<String>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`images` to be a list of objects with `b64`")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut images = Vec::new();
        while let Some(image) = list.next_element_seed(ImageSeed { index: images.len() })? {
            images.push(image);
        }
        Ok(images)
    }
}

struct ImageSeed {
    index: usize,
}

impl<'de> DeserializeSeed<'de> for ImageSeed {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ImageSeed {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {} of `images` to be an object with `b64`", self.index)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let of_image = |problem: String| A::Error::custom(format!("image {}: {problem}", self.index));
        let mut b64 = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "b64" if b64.is_none() => {
                    b64 = Some(map.next_value().map_err(|error: A::Error| of_image(format!("`b64`: {error}")))?);
                }
                "b64" => return Err(of_image("`b64` stands there twice".to_owned())),
                _ => return Err(of_image(format!("unknown key `{key}`: an image has `b64` and nothing else"))),
            }
        }
        b64.ok_or_else(|| of_image("`b64` is missing".to_owned()))
    }
}

/// Reads rows into one vector, with no tree of values between.
struct RowsSeed {
    feature_dim: usize,
}

impl<'de> DeserializeSeed<'de> for RowsSeed {
    type Value = (Vec<f32>, usize);
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for RowsSeed {
    type Value = (Vec<f32>, usize);
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`features` to be a list of feature rows")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Self::Value, A::Error> {
        let (mut values, mut n) = (Vec::new(), 0);
        while rows.next_element_seed(RowSeed { values: &mut values, row: n, feature_dim: self.feature_dim })?.is_some()
        {
            n += 1;
        }
        Ok((values, n))
    }
}

struct RowSeed<'a> {
    values: &'a mut Vec<f32>,
    row: usize,
    feature_dim: usize,
}

impl<'de> DeserializeSeed<'de> for RowSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} of `features` to be a list of {} numbers", self.row, self.feature_dim)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut row: A) -> Result<(), A::Error> {
        let start = self.values.len();
        let in_row = |error: A::Error| A::Error::custom(format!("row {}: {error}", self.row));
        while let Some(value) = row.next_element::<f64>().map_err(in_row)? {
            let narrow = value as f32;
            if !narrow.is_finite() {
                return Err(A::Error::custom(format!("row {}: {value} is beyond float32", self.row)));
            }
            self.values.push(narrow);
        }
        match self.values.len() - start {
            found if found == self.feature_dim => Ok(()),
            found => {
                let expected = self.feature_dim;
                Err(A::Error::custom(format!("row {} has {found} values, and the model takes {expected}", self.row)))
            }
        }
    }
}
