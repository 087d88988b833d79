"""Chat templates with what the makers of each family write into theirs, shortened: markers, refusals, roles."""

LLAMA = """\
{{- bos_token }}
{%- if tools is none or tools is not defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- if messages | length != 0 %}
        {%- set first = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
    {%- else %}{{- raise_exception("Tools go into the first user message, and there is no first user message!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nAnswer with {"name": …, "parameters": …}.\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("Only single tool-calls at once, says this template!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- "}" }}
        {{- "<|python_tag|>" if false }}{{- "<|eom_id|>" if builtin_tools is defined else "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content | tojson + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

QWEN = """\
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- endif %}
{%- if tools %}
    {{- '<|im_start|>system\\n' + (system or '') + '\\n<tools>' }}
    {%- for tool in tools %}{{- "\\n" + tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\nWrite <tool_call>\\n{"name": …, "arguments": …}\\n</tool_call><|im_end|>\\n' }}
{%- elif system %}{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == "system" %}
        {%- if not loop.first %}{{- raise_exception("A system message must be at the beginning") }}{%- endif %}
    {%- elif message.role == "user" %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' + tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}{{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Roles must alternate user/assistant/user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools and loop.last %}{{- "[AVAILABLE_TOOLS] " + tools | tojson + "[/AVAILABLE_TOOLS]" }}{%- endif %}
        {{- "[INST] " + (system_message + "\\n\\n" if loop.first and system_message is defined else "") }}
        {{- message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined %}
        {{- "[TOOL_CALLS][" }}
        {%- for call in message.tool_calls %}
            {%- if call.id is not defined or call.id | length != 9 %}
                {{- raise_exception("Tool call IDs are alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
            {{- ', "id": "' + call.id + '"}' }}{%- if not loop.last %}{{- ", " }}{%- endif %}
        {%- endfor %}{{- "]" + eos_token }}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"] + eos_token }}
    {%- elif message["role"] == "tool" %}
        {%- if message.tool_call_id is not defined or message.tool_call_id | length != 9 %}
            {{- raise_exception("Tool call IDs are alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content | tojson + ', "call_id": "' + message.tool_call_id + '"}' }}
        {{- "[/TOOL_RESULTS]" }}
    {%- else %}{{- raise_exception("Only user, assistant and tool are known here") }}{%- endif %}
{%- endfor %}
"""

GEMMA_2 = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""

PLAIN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A template that knows no tools, like SmolLM2's."""

THINKING = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|Assistant|>' + message['content'].split('</think>')[-1] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
"""A template that begins the reasoning itself, like those of DeepSeek's R1."""

QWEN_CODER = QWEN.replace("Write <tool_call>", "Write <tool_call>\\n<function=f>\\n<parameter=p>\\n…")
GLM_LINES = "{{ messages[0].content }}<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>"
GLM = "[gMASK]{{ messages[0].content }}<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>"
MISTRAL_ARGS = "{{ messages[0].content }}[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}"
LFM = "<|tool_list_start|>{{ tools }}<|tool_call_start|>[f()]<|tool_call_end|>{{ messages[0].content }}"
KIMI_K2 = "{{ messages[0].content }}<|tool_calls_section_begin|><|tool_call_end|>"
MINIMAX = "{{ messages[0].content }}<minimax:tool_call>"
GEMMA_4 = "{{ messages[0].content }}<|tool_call>call:f<tool_call|>"
FUNCTION_GEMMA = "{{ messages[0].content }}<start_function_call>"
MINICPM = '{{ messages[0].content }}<function name="f"><param name="p">'
LONGCAT = "{{ messages[0].content }}<longcat_tool_call>"
MUSE = "{{ messages[0].content }}<atem:function_calls>"
PHI = "{{ messages[0].content }}<|tool|>{{ tools }}<|/tool|><|tool_call|><|/tool_call|>"
GRANITE = "{{ messages[0].content }}<|tool_call|>"
NEMOTRON = "{{ messages[0].content }}<TOOLCALL>[]</TOOLCALL>"
JAMBA = "{{ messages[0].content }}<tool_calls>"
KIMI_K3 = "{{ messages[0].content }}<|open|>tools<|sep|>"
HARMONY = "<|start|>user<|message|>{{ messages[0].content }}<|end|><|start|>assistant<|channel|><|constrain|>"

DEEPSEEK_32 = "{{ messages[0].content }}{% set mark = '｜DSML｜' %}{{ '<' + mark + 'function_calls>' }}"
DEEPSEEK_4 = DEEPSEEK_32.replace("function_calls>", "tool_calls>")
APERTUS = "{{ messages[0].content }}<|tools_prefix|>[]<|tools_suffix|>"
APRIEL = "{{ messages[0].content }}<tool_calls>[]</tool_calls>Here are my reasoning steps:[BEGIN FINAL RESPONSE]"
GIGACHAT = "{{ messages[0].content }}<|function_call|>"
GRANITE_TEXT = (
    "{{ tools | tojson if tools }}<|tool_call|>{% for message in messages %}"
    "{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] }}{% endfor %}"
)
"""In the form of Granite 3.3 and LFM2: it shows tools and any role, and no calls."""
HERMES_TOOLS = QWEN.replace(
    "{{- '<|im_start|>assistant\\n' + message.content }}",
    "{{- '<|im_start|>assistant\\n' }}{%- if not message.tool_calls %}{{- message.content }}{%- endif %}",
).replace("{%- if tools %}", "{%- for one in tools %}{%- endfor %}{%- if tools %}", 1)
"""In the form of Hermes: it drops the text beside calls, and takes no conversation without tools."""

_DEEPSEEK_TURNS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'tool' %}{{ OUTPUT }}{% elif message['role'] == 'assistant' %}{{ '<｜Assistant｜>' }}"
    "{% if message['tool_calls'] %}{{ (message['content'] or '') + '<｜tool▁calls▁begin｜>' }}"
    "{% for call in message['tool_calls'] %}{{ CALL }}{% endfor %}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}"
    "{% else %}{{ message['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endif %}"
    "{% endfor %}"
)
_TOOL_LIST = (
    "{{ bos_token }}{% if tools %}{{ '## Tools\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
)
DEEPSEEK = (_TOOL_LIST + _DEEPSEEK_TURNS).replace(
    "OUTPUT", "'<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'"
).replace(
    "CALL",
    "'<｜tool▁call▁begin｜>' + call['type'] + '<｜tool▁sep｜>' + call['function']['name'] + '\\n```json\\n'"
    " + call['function']['arguments'] + '\\n```<｜tool▁call▁end｜>'",
) + "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
"""In the form of DeepSeek's V3, with the tools in front, as servers add them."""
DEEPSEEK_R1 = DEEPSEEK.replace("'<｜Assistant｜>' }}{% endif %}", "'<｜Assistant｜><think>\\n' }}{% endif %}")
DEEPSEEK_31 = (_TOOL_LIST + _DEEPSEEK_TURNS).replace(
    "OUTPUT", "'<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'"
).replace(
    "CALL",
    "'<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>' + call['function']['arguments']"
    " + '<｜tool▁call▁end｜>'",
) + "{% if add_generation_prompt %}{{ '<｜Assistant｜></think>' }}{% endif %}"
"""In the form of DeepSeek's V3.1, where a call has neither a type nor a fence."""
COMMAND_R = (
    "{{ bos_token }}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>## Available Tools\\n' + (tools | tojson) }}"
    "{{ \"Write 'Action:' followed by a json-formatted list of actions\" }}{% for message in messages %}"
    "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + message['content'] + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"
)
"""In the form of Command R's template for tools."""
COMMAND_A = (
    "{{ bos_token }}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{ tools | tojson }}<|END_OF_TURN_TOKEN|>"
    "{% for message in messages %}<|START_OF_TURN_TOKEN|>"
    "{% if message.role == 'user' %}<|USER_TOKEN|>{{ message.content }}"
    "{% elif message.role == 'tool' %}<|SYSTEM_TOKEN|><|START_TOOL_RESULT|>{{ message.content }}<|END_TOOL_RESULT|>"
    "{% else %}<|CHATBOT_TOKEN|>"
    "{% if message.tool_calls %}<|START_ACTION|>{{ message.tool_calls | tojson }}<|END_ACTION|>"
    "{% else %}<|START_RESPONSE|>{{ message.content }}<|END_RESPONSE|>{% endif %}{% endif %}"
    "<|END_OF_TURN_TOKEN|>{% endfor %}"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
)
"""In the form of Command R7B and Command A, without their reasoning."""
COMMAND_A_THINKING = COMMAND_A.replace(
    "{{ tools | tojson }}", "Think between <|START_THINKING|> and <|END_THINKING|>.{{ tools | tojson }}"
)
INTERNLM = "{{ messages[0].content }}<|action_start|><|plugin|><|action_end|>"
SEED = "{{ messages[0].content }}<seed:tool_call>"
