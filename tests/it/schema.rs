//! JSON Schema, as far as our OpenAPI document uses it.

use serde_json::Value;

/// What of `value` is not as `schema` says, each with its place. References lead into `api`.
pub(crate) fn violations(api: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    Check { api, found: &mut found }.check(schema, value, "");
    found
}

struct Check<'a> {
    api: &'a Value,
    found: &'a mut Vec<String>,
}

impl Check<'_> {
    fn check(&mut self, schema: &Value, value: &Value, place: &str) {
        for (keyword, says) in schema.as_object().unwrap() {
            if let Err(problem) = self.keyword(schema, keyword, says, value, place) {
                self.found.push(format!("{place}: {problem}"));
            }
        }
    }

    fn is_valid(&self, schema: &Value, value: &Value) -> bool {
        violations(self.api, schema, value).is_empty()
    }

    fn keyword(
        &mut self,
        schema: &Value,
        keyword: &str,
        says: &Value,
        value: &Value,
        place: &str,
    ) -> Result<(), String> {
        let empty = Vec::new();
        let listed = says.as_array().unwrap_or(&empty);
        let fitting = || listed.iter().filter(|branch| self.is_valid(branch, value)).count();
        let number = |holds: fn(f64, f64) -> bool| match (value.as_f64(), says.as_f64().unwrap()) {
            (Some(value), limit) => holds(value, limit),
            (None, _) => true,
        };
        let length = value.as_array().map(|values| values.len() as u64);
        let holds = match keyword {
            "$ref" => {
                let target = self.api.pointer(says.as_str().unwrap().trim_start_matches('#')).unwrap();
                self.check(target, value, place);
                true
            }
            "allOf" => {
                listed.iter().for_each(|branch| self.check(branch, value, place));
                true
            }
            "anyOf" => fitting() > 0,
            "oneOf" => fitting() == 1,
            "type" => says.as_str().map_or_else(
                || listed.iter().any(|name| is_of_type(name.as_str().unwrap(), value)),
                |name| is_of_type(name, value),
            ),
            "const" => says == value,
            "enum" => listed.contains(value),
            "minimum" => number(|value, limit| value >= limit),
            "maximum" => number(|value, limit| value <= limit),
            "exclusiveMinimum" => number(|value, limit| value > limit),
            "exclusiveMaximum" => number(|value, limit| value < limit),
            "minItems" => length.is_none_or(|length| length >= says.as_u64().unwrap()),
            "maxItems" => length.is_none_or(|length| length <= says.as_u64().unwrap()),
            "required" => {
                let missing = |key: &&Value| value.is_object() && value.get(key.as_str().unwrap()).is_none();
                return listed.iter().find(missing).map_or(Ok(()), |key| Err(format!("{key} is missing")));
            }
            "properties" => {
                for (key, schema) in says.as_object().unwrap() {
                    if let Some(value) = value.get(key) {
                        self.check(schema, value, &format!("{place}/{key}"));
                    }
                }
                true
            }
            "additionalProperties" if *says == Value::Bool(false) => {
                let is_known = |key: &String| schema["properties"].get(key).is_some();
                let unknown = value.as_object().and_then(|object| object.keys().find(|key| !is_known(key)));
                return unknown.map_or(Ok(()), |key| Err(format!("{key} is unknown")));
            }
            "items" => {
                for (index, value) in value.as_array().unwrap_or(&empty).iter().enumerate() {
                    self.check(says, value, &format!("{place}/{index}"));
                }
                true
            }
            // What people read, and what none of our types leans on.
            _ => true,
        };
        if holds { Ok(()) } else { Err(format!("not {keyword} {says}: {value}")) }
    }
}

fn is_of_type(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("`{other}` is no type of JSON Schema"),
    }
}
