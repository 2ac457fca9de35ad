#!/bin/sh
# guidellm, unmodified, against a running server: guidellm.sh URL MODEL TOKENIZER_FOLDER
set -e
HF_HUB_OFFLINE=1 guidellm run \
    --backend kind=openai_http,target="$1",model="$2" \
    --profile kind=concurrent,streams=2 \
    --constraint kind=max_requests,count=4 \
    --data kind=synthetic_text,prompt_tokens=16,output_tokens=4 \
    --tokenizer kind=huggingface_auto,model="$3" \
    --disable-console-interactive --output kind=console
