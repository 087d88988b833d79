// One turn with a tool through the npm package `ollama`, for tests/builders/ollama_clients.py. Arguments: the folder of
// the package, base URL, model. Prints one object of JSON.
import { pathToFileURL } from 'node:url'

const [folder, host, model] = process.argv.slice(2)
const { Ollama } = await import(pathToFileURL(`${folder}/dist/index.mjs`))
const ollama = new Ollama({ host })
const parameters = { type: 'object', required: ['city'], properties: { city: { type: 'string' } } }
const tools = [{ type: 'function', function: { name: 'weather', description: 'Tell the weather of a city.', parameters } }]
const messages = [{ role: 'user', content: 'Weather in Oslo?' }]

async function answered() {
  const message = { role: 'assistant', content: '', tool_calls: [] }
  const options = { temperature: 0, num_predict: 24 }
  for await (const part of await ollama.chat({ model, messages, tools, stream: true, options })) {
    message.content += part.message.content
    message.tool_calls.push(...(part.message.tool_calls ?? []))
  }
  messages.push(message)
  return message
}

const calls = (await answered()).tool_calls.map((call) => call.function)
for (const call of calls) messages.push({ role: 'tool', tool_name: call.name, content: '-3' })
const text = calls.length ? (await answered()).content : messages.at(-1).content
const models = (await ollama.list()).models.map((each) => each.name)
console.log(JSON.stringify({ models, calls, text }))
