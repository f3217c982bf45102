# The command `llm`, with our server among its own models as its documentation says.
set -eu
export LLM_USER_PATH="$FOLDER/llm"
mkdir -p "$LLM_USER_PATH"
cat > "$LLM_USER_PATH/extra-openai-models.yaml" <<END
- model_id: penstock
  model_name: $MODEL
  api_base: $OPENAI_BASE_URL
  api_key_name: penstock
  supports_schema: true
END
llm keys set penstock --value "$OPENAI_API_KEY"
whole=$(llm -m penstock --no-stream -o temperature 0 -o max_tokens 24 'What is a quota?')
streamed=$(llm -m penstock -o temperature 0 -o max_tokens 24 'What is a quota?')
[ -n "$whole" ]
[ "$whole" = "$streamed" ]
llm -m penstock -o max_tokens 200 --schema \
    '{"type": "object", "properties": {"sunny": {"type": "boolean"}}, "required": ["sunny"], "additionalProperties": false}' \
    'Is it sunny?' | grep -q '"sunny"'
